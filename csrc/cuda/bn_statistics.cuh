// Mean and variance of each channel.
#pragma once
#include "channels.cuh"

namespace ckd::cuda {

template <class S>
struct StatisticsCall {
  ChannelCut cut;  // planes: outer, rows, steps, so that a block has all steps of what it has
  Divider by_steps, by_rows;
  const S* y;
  double* moments;  // [2, channels]

  // Of the cut's plane, where it lies in memory: [outer, steps, rows].
  CKD_DEVICE int64_t frame_plane(int64_t plane) const {
    if (by_steps.divisor == 1) return plane;
    const Parts row = by_steps.split(plane);
    if (by_rows.divisor * by_steps.divisor == cut.planes) return row.remainder * by_rows.divisor + row.quotient;
    const Parts outer = by_rows.split(row.quotient);
    return (outer.quotient * by_steps.divisor + row.remainder) * by_rows.divisor + outer.remainder;
  }

  // A member of the channel: deviations from it lose nothing to cancellation, so one pass is enough.
  CKD_DEVICE double pivot(int64_t channel) const {
    return static_cast<double>(static_cast<float>(y[channel * cut.inner]));
  }
  // use(mean, variance)
  template <class Use>
  CKD_DEVICE void moments_of(int64_t channel, double sum, double squares, Use&& use) const {
    const double count = static_cast<double>(cut.planes * cut.inner);
    const double variance = (squares - sum * sum / count) / count;
    use(pivot(channel) + sum / count, variance < 0 ? 0.0 : variance);  // NaN stays NaN
  }
  CKD_DEVICE void finish(int64_t channel, double sum, double squares) const {
    moments_of(channel, sum, squares, [&](double mean, double variance) {
      moments[channel] = mean;
      moments[cut.channels + channel] = variance;
    });
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

// Of channels-last float32, two sums and a pivot in double precision for each channel of an access take registers.
template <class S, template <int> class Channels>
inline constexpr int kStatisticsWidth = Channels<1>::kChannelsInside && sizeof(S) == 4 ? 4 : kWide<S>;

// How the statistics are cut; planes: every frame that there is.
struct StatisticsPlan {
  int64_t planes, steps;
  int width;
  ChannelSize size;

  template <class S>
  StatisticsPlan(const BatchStatistics& call, S) {
    const Shape& shape = call.shape;
    const bool planar = shape.inner > 1;
    steps = shape.repeated ? 1 : shape.steps;
    planes = shape.outer * steps * shape.rows;
    width = planar ? kStatisticsWidth<S, PlanarChannels> : kStatisticsWidth<S, RowChannels>;
    if ((planar ? shape.inner : shape.channels) % width != 0 || !aligned({call.y})) width = 1;
    // With the registers that a pass of neurons takes, too, a multiprocessor has room for three.
    constexpr int64_t kBlocks = 384;
    size = ChannelTiles(planes, shape.channels, shape.inner, width, kStatisticsThreads).for_sums(kBlocks, 0, steps);
  }
};

template <class S>
StatisticsCall<S> statistics_call(const BatchStatistics& call, const StatisticsPlan& plan, void* workspace) {
  const Shape& shape = call.shape;
  return {channel_cut(plan.planes, shape.channels, shape.inner, plan.width, plan.size, workspace), Divider(plan.steps),
          Divider(shape.rows), static_cast<const S*>(call.y), call.moments};
}

template <class S, int W, template <int> class Channels>
CKD_DEVICE void statistics_of_block(const StatisticsCall<S>& call, unsigned block) {
  using C = Channels<W>;
  const ChannelCut& cut = call.cut;
  const ChannelShare share = C::share(cut, block);
  typename C::Sums sums(cut);
  Deviations<S, C, W> deviations(call, share);
  C::template visit<C::kChannelsInside && sizeof(S) == 4 ? 2 : 4, false, false>(
      cut, share,
      [&](int64_t plane, int64_t column) {
        return load<W>(call.y + (call.frame_plane(plane) * cut.channels + share.channel) * cut.inner + column);
      },
      [&](const Pack<S, W>& packet) { deviations.add(packet, sums); });
  deviations.flush(sums);
  sums.store(cut, share);
}

template <class S, int W, template <int> class Channels>
__global__ void __launch_bounds__(kStatisticsThreads, 3)
    statistics_kernel(const __grid_constant__ StatisticsCall<S> call) {
  let_next_begin();
  statistics_of_block<S, W, Channels>(call, blockIdx.x);
}

}  // namespace ckd::cuda
