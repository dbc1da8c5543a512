// Batch normalisation and multi-step neurons with float32 storage.
#include "bn_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_bn_lif<float>(const LifForward&, void*);
template cudaError_t launch_bn_lif<float>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
