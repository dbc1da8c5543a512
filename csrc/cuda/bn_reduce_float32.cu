// The first pass back through batch normalisation with float32 storage.
#include "bn_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_bn_reduce<float>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
