// Entry point for the statistics of batch normalisation.
#include "bn_statistics.cuh"
#include "ckd/cuda.h"

namespace ckd::cuda {
namespace {

// planes: every frame that there is.
struct StatisticsPlan {
  int64_t planes;
  int width;
  ChannelSize size;

  template <class S>
  StatisticsPlan(const BatchStatistics& call, S) {
    const Shape& shape = call.shape;
    const bool planar = shape.inner > 1;
    planes = shape.outer * (shape.repeated ? 1 : shape.steps) * shape.rows;
    width = planar ? kWide<S> : kRowWidth;
    if ((planar ? shape.inner : shape.channels) % width != 0 || !aligned({call.y})) width = 1;
    size = ChannelTiles(planes, shape.channels, shape.inner, width, kStatisticsThreads).for_sums(0);
  }
  // Two sums and a pivot for each channel of an access take registers.
  static constexpr int kRowWidth = 4;
};

template <class S>
cudaError_t launch_statistics(const BatchStatistics& call, const StatisticsPlan& plan, void* workspace, void* stream) {
  const Shape& shape = call.shape;
  const ChannelCut cut = channel_cut(plan.planes, shape.channels, shape.inner, plan.width, plan.size, workspace);
  const StatisticsCall<S> arguments{cut, static_cast<const S*>(call.y), call.moments};
  const LaunchSize& size = plan.size.size;
  const bool planar = shape.inner > 1;
  const cudaError_t status =
      planar ? plan.width > 1 ? launch(statistics_kernel<S, kWide<S>, PlanarChannels>, size, stream, arguments)
                              : launch(statistics_kernel<S, 1, PlanarChannels>, size, stream, arguments)
      : plan.width > 1 ? launch(statistics_kernel<S, StatisticsPlan::kRowWidth, RowChannels>, size, stream, arguments)
                       : launch(statistics_kernel<S, 1, RowChannels>, size, stream, arguments);
  if (status != cudaSuccess) return status;
  return launch_add_slices(arguments, stream);
}

}  // namespace

int64_t bn_statistics_workspace(const BatchStatistics& call) {
  int64_t bytes = 0;
  with_storage(call.dtype, [&](auto s) {
    bytes = partial_bytes(call.shape.channels, StatisticsPlan(call, s).size);
    return cudaSuccess;
  });
  return bytes;
}

int bn_statistics(const BatchStatistics& call, void* workspace, int device, void* stream) {
  return on_device(device, [&] {
    return with_storage(call.dtype, [&](auto s) {
      return launch_statistics<decltype(s)>(call, StatisticsPlan(call, s), workspace, stream);
    });
  });
}

}  // namespace ckd::cuda
