// Multi-step neurons with float16 storage.
#include "lif_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_lif<__half>(const LifForward&, void*);
template cudaError_t launch_lif<__half>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
