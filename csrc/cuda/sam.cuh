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
    using Spikes = Stream<Series<S, W>, 0>;
    Spikes stream({call.spikes + place.input, e.repeated ? 0 : e.frame}, e.steps);
#pragma unroll 1
    for (int first = 0; first < e.steps; first += Spikes::kGroup) {
      const auto packets = stream.take();
#pragma unroll
      for (int i = 0; i < Spikes::kGroup; ++i) {
        if (first + i >= e.steps) break;
        float spikes[W];
        widen(packets[i], spikes);
#pragma unroll
        for (int j = 0; j < W; ++j) amount[j] += spikes[j];
      }
    }
  });
}

}  // namespace ckd::cuda
