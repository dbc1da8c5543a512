// The usual neurons backward through batch normalisation with bfloat16 storage.
#include "bn_usual_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_usual_sums<__nv_bfloat16>(const LifBackward&, int, void*, void*);
template cudaError_t launch_usual_apply<__nv_bfloat16>(const LifBackward&, int, void*);
template cudaError_t launch_usual_both<__nv_bfloat16>(const BatchCoefficients&, const LifBackward&, int, void*, void*);
}  // namespace ckd::cuda
