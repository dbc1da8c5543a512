// Batch normalisation and multi-step neurons with float16 storage.
#include "bn_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_bn_lif<__half>(const LifForward&, void*);
template cudaError_t launch_bn_lif<__half>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
