// The first pass back through batch normalisation with float16 storage.
#include "bn_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_bn_reduce<__half>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
