// Entry points for multi-step neurons, alone and behind batch normalisation.
#include "bn_launch.cuh"
#include "ckd/cuda.h"

namespace ckd::cuda {

#define CKD_COMPILED_ELSEWHERE(S)                                                 \
  extern template cudaError_t launch_lif<S>(const LifForward&, void*);            \
  extern template cudaError_t launch_lif<S>(const LifBackward&, void*, void*);    \
  extern template cudaError_t launch_bn_lif<S>(const LifForward&, void*);         \
  extern template cudaError_t launch_bn_lif<S>(const LifBackward&, void*, void*); \
  extern template cudaError_t launch_bn_reduce<S>(const LifBackward&, void*, void*);
CKD_COMPILED_ELSEWHERE(float)
CKD_COMPILED_ELSEWHERE(__nv_bfloat16)
CKD_COMPILED_ELSEWHERE(__half)
#undef CKD_COMPILED_ELSEWHERE

int lif_forward(const LifForward& call, int device, void* stream) {
  return on_device(device, [&] {
    return with_storage(call.dtype, [&](auto s) {
      using S = decltype(s);
      return call.affine.scale ? launch_bn_lif<S>(call, stream) : launch_lif<S>(call, stream);
    });
  });
}

int64_t lif_backward_workspace(const LifBackward& call) {
  if (call.grad_leak) return LeakTerms(call, run_time_width(call)).bytes();
  int64_t bytes = 0;
  if (call.sums) {
    with_storage(call.dtype, [&](auto s) {
      bytes = bn_reduce_workspace<decltype(s)>(call);
      return cudaSuccess;
    });
  }
  return bytes;
}

int lif_backward(const LifBackward& call, void* workspace, int device, void* stream) {
  return on_device(device, [&] {
    return with_storage(call.dtype, [&](auto s) {
      using S = decltype(s);
      if (call.sums) return launch_bn_reduce<S>(call, workspace, stream);
      return call.affine.scale ? launch_bn_lif<S>(call, workspace, stream) : launch_lif<S>(call, workspace, stream);
    });
  });
}

bool is_compiled_in(const Neuron& neuron, bool normalised) { return is_compiled_in(Rule(neuron, nullptr), normalised); }

}  // namespace ckd::cuda
