// Multi-step neurons with bfloat16 storage.
#include "lif_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_lif<__nv_bfloat16>(const LifForward&, void*);
template cudaError_t launch_lif<__nv_bfloat16>(const LifBackward&, void*, void*);
}  // namespace ckd::cuda
