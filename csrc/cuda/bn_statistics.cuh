// Mean and variance of each channel.
#pragma once
#include "channels.cuh"

namespace ckd::cuda {

template <class S>
struct StatisticsCall {
  ChannelCut cut;
  const S* y;
  double* moments;  // [2, channels]

  // A member of the channel: deviations from it lose nothing to cancellation, so one pass is enough.
  CKD_DEVICE double pivot(int64_t channel) const {
    return static_cast<double>(static_cast<float>(y[channel * cut.inner]));
  }
  CKD_DEVICE void finish(int64_t channel, double sum, double squares) const {
    const double count = static_cast<double>(cut.planes * cut.inner);
    const double variance = (squares - sum * sum / count) / count;
    moments[channel] = pivot(channel) + sum / count;
    moments[cut.channels + channel] = variance < 0 ? 0.0 : variance;  // NaN stays NaN
  }
};

// Sums of deviations from a pivot, and of their squares: of float in double precision throughout, of 2-byte types,
// whose values are good to three digits, a few terms in float before they are added to the rest.
template <class S, class C, int W>
class Deviations {
  static constexpr bool kEach = C::kChannelsInside;
  static constexpr bool kExact = sizeof(S) == 4;
  static constexpr int kLanes = kEach ? W : 1;
  static constexpr int kFlush = 16;  // vectors, where neighbours are not of one channel
  using Sum = std::conditional_t<kExact, double, float>;
  Sum pivot_[kLanes], first_[kLanes] = {}, second_[kLanes] = {};
  int held_ = 0;

 public:
  CKD_DEVICE Deviations(const StatisticsCall<S>& call, const ChannelShare& share) {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      pivot_[j] = share.any ? static_cast<Sum>(call.pivot(share.channel + j)) : Sum(0);
    }
  }
  CKD_DEVICE void add(const Pack<S, W>& packet, typename C::Sums& sums) {
    float y[W];
    widen(packet, y);
    if constexpr (kExact || kEach) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const Sum deviation = static_cast<Sum>(y[j]) - pivot_[j % kLanes];
        first_[j % kLanes] += deviation;
        second_[j % kLanes] += deviation * deviation;
      }
      if (!kExact && ++held_ == kFlush) flush(sums);
    } else {
      float squares[W];
#pragma unroll
      for (int j = 0; j < W; ++j) {
        y[j] = y[j] - pivot_[0];
        squares[j] = y[j] * y[j];
      }
      sums.add(y, squares);
    }
  }
  CKD_DEVICE void flush(typename C::Sums& sums) {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      sums.add(j, first_[j], second_[j]);
      first_[j] = second_[j] = 0;
    }
    held_ = 0;
  }
};

inline constexpr unsigned kStatisticsThreads = 256;

template <class S, int W, template <int> class Channels>
__global__ void __launch_bounds__(kStatisticsThreads, 4)
    statistics_kernel(const __grid_constant__ StatisticsCall<S> call) {
  using C = Channels<W>;
  const ChannelCut& cut = call.cut;
  const ChannelShare share = C::share(cut, blockIdx.x);
  let_next_begin();
  typename C::Sums sums(cut);
  Deviations<S, C, W> deviations(call, share);
  C::template visit<C::kChannelsInside && sizeof(S) == 4 ? 2 : 4, false>(
      cut, share,
      [&](int64_t plane, int64_t column) {
        return load<W>(call.y + (plane * cut.channels + share.channel) * cut.inner + column);
      },
      [&](const Pack<S, W>& packet) { deviations.add(packet, sums); });
  deviations.flush(sums);
  sums.store(cut, share);
}

}  // namespace ckd::cuda
