// Entry points for multi-step neurons.
#include "ckd/cuda.h"
#include "lif_launch.cuh"

namespace ckd::cuda {

#define CKD_COMPILED_ELSEWHERE(S)                                      \
  extern template cudaError_t launch_lif<S>(const LifForward&, void*); \
  extern template cudaError_t launch_lif<S>(const LifBackward&, void*, void*);
CKD_COMPILED_ELSEWHERE(float)
CKD_COMPILED_ELSEWHERE(__nv_bfloat16)
CKD_COMPILED_ELSEWHERE(__half)
#undef CKD_COMPILED_ELSEWHERE

int lif_forward(const LifForward& call, int device, void* stream) {
  return on_device(
      device, [&] { return with_storage(call.dtype, [&](auto s) { return launch_lif<decltype(s)>(call, stream); }); });
}

int64_t lif_backward_workspace(const LifBackward& call) {
  if (!call.grad_leak) return 0;
  int64_t bytes = 0;
  with_storage(call.dtype, [&](auto s) {
    bytes = LeakTerms(call, backward_width<decltype(s)>(call)).bytes();
    return cudaSuccess;
  });
  return bytes;
}

int lif_backward(const LifBackward& call, void* workspace, int device, void* stream) {
  return on_device(device, [&] {
    return with_storage(call.dtype, [&](auto s) { return launch_lif<decltype(s)>(call, workspace, stream); });
  });
}

}  // namespace ckd::cuda
