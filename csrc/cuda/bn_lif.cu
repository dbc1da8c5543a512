// Entry points for batch normalisation by statistics of its own and neurons: both passes of a direction.
#include <algorithm>

#include "bn_launch.cuh"
#include "ckd/cuda.h"

namespace ckd::cuda {

#define CKD_COMPILED_ELSEWHERE(S)                                                                                  \
  extern template bool launch_bn_lif<S>(const BatchStatistics&, const BatchFold&, const LifForward&, void*, void*, \
                                        cudaError_t&);                                                             \
  extern template bool launch_bn_lif<S>(const BatchCoefficients&, const LifBackward&, void*, void*, cudaError_t&);
CKD_COMPILED_ELSEWHERE(float)
CKD_COMPILED_ELSEWHERE(__nv_bfloat16)
CKD_COMPILED_ELSEWHERE(__half)
#undef CKD_COMPILED_ELSEWHERE

namespace {

// Two values a channel, behind what else is in the workspace.
int64_t pair_bytes(const Shape& shape) { return 2 * shape.channels * int64_t{sizeof(double)}; }
double* pairs_at(void* workspace, int64_t bytes_before) {
  return reinterpret_cast<double*>(static_cast<char*>(workspace) + bytes_before);
}

// The first pass of a call that is given for the second one.
LifBackward first_pass(const LifBackward& call, double* sums) {
  LifBackward first = call;
  first.grad_x = first.grad_v_init = first.grad_leak = first.grad_residual = nullptr;
  first.offset = first.slope = nullptr;
  first.sums = sums;
  return first;
}

// Of either pass.
int64_t pass_workspace(const LifBackward& call) {
  double any = 0;
  return std::max(lif_backward_workspace(call), lif_backward_workspace(first_pass(call, &any)));
}

// Calls each of f until one fails.
template <class... F>
int in_turn(F&&... f) {
  int status = 0;
  static_cast<void>((((status = f()) == 0) && ...));
  return status;
}

}  // namespace

int64_t bn_lif_forward_workspace(const BatchStatistics& statistics) {
  return bn_statistics_workspace(statistics) + pair_bytes(statistics.shape);
}

int bn_lif_forward(const BatchStatistics& statistics, const BatchFold& fold, const LifForward& call, void* workspace,
                   int device, void* stream) {
  return on_device(device, [&] {
    return static_cast<int>(with_storage(call.dtype, [&](auto s) {
      cudaError_t status = cudaSuccess;
      if (launch_bn_lif<decltype(s)>(statistics, fold, call, workspace, stream, status)) return status;
      BatchStatistics own = statistics;
      BatchFold of_own = fold;
      of_own.moments = own.moments = pairs_at(workspace, bn_statistics_workspace(statistics));
      return static_cast<cudaError_t>(in_turn([&] { return bn_statistics(own, workspace, device, stream); },
                                              [&] { return bn_fold(of_own, device, stream); },
                                              [&] { return lif_forward(call, device, stream); }));
    }));
  });
}

int64_t bn_lif_backward_workspace(const LifBackward& call) { return pass_workspace(call) + pair_bytes(call.shape); }

int bn_lif_backward(const BatchCoefficients& coefficients, const LifBackward& call, void* workspace, int device,
                    void* stream) {
  return on_device(device, [&] {
    return static_cast<int>(with_storage(call.dtype, [&](auto s) {
      cudaError_t status = cudaSuccess;
      if (launch_bn_lif<decltype(s)>(coefficients, call, workspace, stream, status)) return status;
      double* sums = pairs_at(workspace, pass_workspace(call));
      BatchCoefficients of_sums = coefficients;
      of_sums.sums = sums;
      return static_cast<cudaError_t>(
          in_turn([&] { return lif_backward(first_pass(call, sums), workspace, device, stream); },
                  [&] { return bn_coefficients(of_sums, device, stream); },
                  [&] { return lif_backward(call, workspace, device, stream); }));
    }));
  });
}

}  // namespace ckd::cuda
