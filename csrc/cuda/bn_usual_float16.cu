// The usual neurons backward through batch normalisation with float16 storage.
#include "bn_usual_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_usual_sums<__half>(const LifBackward&, int, void*, void*);
template cudaError_t launch_usual_apply<__half>(const LifBackward&, int, void*);
template cudaError_t launch_usual_both<__half>(const BatchCoefficients&, const LifBackward&, int, void*, void*);
}  // namespace ckd::cuda
