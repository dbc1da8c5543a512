// Entry point for the spike activation map of spikes that exist already.
#include "ckd/cuda.h"
#include "launch.h"
#include "sam.cuh"

namespace ckd::cuda {
namespace {

template <class S, int W>
cudaError_t launch_sam(const SamForward& call, void* stream, int processors) {
  SamCall<S> arguments{Extent(call.shape), static_cast<const S*>(call.spikes), static_cast<float*>(call.sam), {}};
  const Extent& e = arguments.extent;
  if (e.inner == 1) {
    const LocationSize size = row_size(e.locations(), e.channels, W);
    arguments.tile = {size.across, size.deep, Divider(size.tiles)};
    return launch(sam_kernel<S, W, RowLocations>, size.size, stream, arguments);
  }
  const LocationSize size = planar_size(e.rows(), e.channels, e.inner, W, processors);
  arguments.tile = {size.across, size.deep, Divider(size.tiles)};
  return launch(sam_kernel<S, W, PlanarLocations>, size.size, stream, arguments);
}

}  // namespace

int sam(const SamForward& call, int device, void* stream) {
  return on_device(device, [&] {
    int processors = 1;
    const cudaError_t status = processor_count(processors);
    if (status != cudaSuccess) return status;
    return with_storage(call.dtype, [&](auto s) {
      using S = decltype(s);
      const Shape& shape = call.shape;
      const int64_t run = shape.inner == 1 ? shape.channels : shape.inner;
      const bool wide = run % kWide<S> == 0 && aligned({call.spikes});
      return wide ? launch_sam<S, kWide<S>>(call, stream, processors) : launch_sam<S, 1>(call, stream, processors);
    });
  });
}

}  // namespace ckd::cuda
