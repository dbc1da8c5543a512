// Batch normalisation and multi-step neurons with bfloat16 storage.
#include "bn_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_bn_lif<__nv_bfloat16>(const LifForward&, void*);
template cudaError_t launch_bn_lif<__nv_bfloat16>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
