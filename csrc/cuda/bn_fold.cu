// Vectors of one value a channel between the passes of batch normalisation; a thread a channel.
#include "ckd/cuda.h"
#include "ckd/normalisation.h"
#include "launch.h"

namespace ckd::cuda {
namespace {

constexpr unsigned kThreads = 128;

__global__ void __launch_bounds__(kThreads) fold_kernel(const __grid_constant__ BatchFold call) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c < call.channels) fold_channel<float>(call, c);
}

__global__ void __launch_bounds__(kThreads) coefficients_kernel(const __grid_constant__ BatchCoefficients call) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c < call.channels) coefficients_of_channel<float>(call, c);
}

template <class Call>
int launch_by_channel(void (*kernel)(Call), const Call& call, int device, void* stream) {
  const LaunchSize size{block_count(call.channels, kThreads), kThreads, 0};
  return on_device(device, [&] { return launch(kernel, size, stream, call); });
}

}  // namespace

int bn_fold(const BatchFold& call, int device, void* stream) {
  return launch_by_channel(fold_kernel, call, device, stream);
}

int bn_coefficients(const BatchCoefficients& call, int device, void* stream) {
  return launch_by_channel(coefficients_kernel, call, device, stream);
}

}  // namespace ckd::cuda
