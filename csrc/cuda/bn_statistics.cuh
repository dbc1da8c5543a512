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

template <class S, int W, template <int> class Channels>
__global__ void __launch_bounds__(256, 1) statistics_kernel(const __grid_constant__ StatisticsCall<S> call) {
  using C = Channels<W>;
  constexpr int kPivots = C::kChannelsInside ? W : 1;
  const ChannelCut& cut = call.cut;
  const ChannelShare share = C::share(cut);
  double pivot[kPivots] = {};
#pragma unroll
  for (int j = 0; j < kPivots; ++j) {
    if (share.any) pivot[j] = call.pivot(share.channel + j);
  }
  C::template sum<4>(
      cut, share,
      [&](int64_t plane, int64_t column) {
        return load<W>(call.y + (plane * cut.channels + share.channel) * cut.inner + column);
      },
      [&](const Pack<S, W>& packet, double (&values)[C::kValues]) {
        float y[W];
        widen(packet, y);
#pragma unroll
        for (int j = 0; j < W; ++j) {
          const double deviation = static_cast<double>(y[j]) - pivot[kPivots == 1 ? 0 : j];
          C::accumulate(values, j, deviation, deviation * deviation);
        }
      });
}

}  // namespace ckd::cuda
