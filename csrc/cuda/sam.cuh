// Spike activation map of spikes that exist already.
#pragma once
#include "locations.cuh"
#include "series.cuh"

namespace ckd::cuda {

template <class S>
struct SamCall {
  Extent extent;
  const S* spikes;
  float* sam;
  LocationTile tile;
};

template <class S, int W, template <class, int> class Locations>
__global__ void __launch_bounds__(512, 1) sam_kernel(const __grid_constant__ SamCall<S> call) {
  const Extent& e = call.extent;
  // Spikes are whole numbers, so float sums of fewer than 2^24 of them are exact.
  Locations<float, W>::mean_over_channels(e, call.tile, call.sam, [&](const Place& place, float (&amount)[W]) {
    Stream<Series<S>, W, 0> stream({call.spikes + place.input}, e.repeated ? 0 : e.frame);
#pragma unroll 1
    for (int t = 0; t < e.steps; ++t) {
      float spikes[W];
      Series<S>::values(stream.take(t, e.steps), spikes);
#pragma unroll
      for (int j = 0; j < W; ++j) amount[j] += spikes[j];
    }
  });
}

}  // namespace ckd::cuda
