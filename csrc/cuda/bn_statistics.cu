// Entry point for the statistics of batch normalisation.
#include "bn_statistics.cuh"
#include "ckd/cuda.h"

namespace ckd::cuda {
namespace {

template <class S>
cudaError_t launch_statistics(const BatchStatistics& call, const StatisticsPlan& plan, void* workspace, void* stream) {
  const StatisticsCall<S> arguments = statistics_call<S>(call, plan, workspace);
  const LaunchSize& size = plan.size.size;
  const auto launch_one = [&](auto wide, auto narrow) {
    return launch(plan.width > 1 ? wide : narrow, size, stream, arguments);
  };
  constexpr int kPlanar = kStatisticsWidth<S, PlanarChannels>, kRow = kStatisticsWidth<S, RowChannels>;
  const cudaError_t status =
      call.shape.inner > 1
          ? launch_one(statistics_kernel<S, kPlanar, PlanarChannels>, statistics_kernel<S, 1, PlanarChannels>)
          : launch_one(statistics_kernel<S, kRow, RowChannels>, statistics_kernel<S, 1, RowChannels>);
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
