// Adds the leak gradients of neurons up to one value, or one per channel, in a fixed order and in double precision.
#include "extent.cuh"
#include "lif_launch.cuh"

namespace ckd::cuda {

template <class Out>
struct LeakSumCall {
  const double* terms;  // [rows, channels, inner]
  int64_t rows, channels;
  Divider inner, slices;  // slices: blocks that share a channel
  Out* sums;              // [channels, slices]
};

inline constexpr int kSumThreads = 256;

// A block adds up one slice of one channel.
template <class Out>
__global__ void __launch_bounds__(kSumThreads) leak_sum_kernel(const __grid_constant__ LeakSumCall<Out> call) {
  double* shared = reinterpret_cast<double*>(ckd_dynamic_shared);
  const Parts block = call.slices.split(blockIdx.x);
  const int64_t channel = block.quotient, terms = call.rows * call.inner.divisor;
  double sum = 0;
  for (int64_t i = block.remainder * kSumThreads + threadIdx.x; i < terms; i += call.slices.divisor * kSumThreads) {
    const Parts at = call.inner.split(i);
    sum += call.terms[(at.quotient * call.channels + channel) * call.inner.divisor + at.remainder];
  }
  shared[threadIdx.x] = sum;
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) call.sums[blockIdx.x] = static_cast<Out>(shared[0]);
}

cudaError_t add_up(const LeakTerms& terms, double* workspace, float* out, void* stream) {
  constexpr size_t kShared = kSumThreads * sizeof(double);
  double* slices = workspace + terms.count();
  const LeakSumCall<double> first{workspace, terms.rows, terms.channels, Divider(terms.inner), Divider(terms.slices),
                                  slices};
  const LeakSumCall<float> second{slices, 1, terms.channels, Divider(terms.slices), Divider(1), out};
  const auto size = [](int64_t blocks) { return LaunchSize{block_count(blocks, 1), kSumThreads, kShared}; };
  const cudaError_t status = launch(leak_sum_kernel<double>, size(terms.channels * terms.slices), stream, first);
  if (status != cudaSuccess) return status;
  return launch(leak_sum_kernel<float>, size(terms.channels), stream, second);
}

}  // namespace ckd::cuda
