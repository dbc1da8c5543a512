// The usual neurons backward through batch normalisation with float32 storage.
#include "bn_usual_launch.cuh"

namespace ckd::cuda {
template cudaError_t launch_usual_sums<float>(const LifBackward&, int, void*, void*);
template cudaError_t launch_usual_apply<float>(const LifBackward&, int, void*);
template cudaError_t launch_usual_both<float>(const BatchCoefficients&, const LifBackward&, int, void*, void*);
}  // namespace ckd::cuda
