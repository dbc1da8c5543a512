// The first pass back through batch normalisation with bfloat16 storage.
#include "bn_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_bn_reduce<__nv_bfloat16>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
