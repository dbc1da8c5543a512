// Sums over channels, one value per location. The order of additions is fixed, so the bits are the same run to run.
#pragma once
#include "extent.cuh"

namespace ckd::cuda {

// A block's shape: `across` threads side by side along memory, `deep` threads that share the channels of a location.
struct LocationTile {
  int across, deep;
  Divider by_tiles;  // blocks side by side
};

CKD_DEVICE float mean(int sum, float total) { return static_cast<float>(sum) / total; }
CKD_DEVICE float mean(float sum, float total) { return sum / total; }

CKD_DEVICE float location_total(const Extent& e) { return static_cast<float>(e.steps * e.channels); }

// Planar, channels outside the innermost dimension (NCHW): a thread owns W neighbouring locations and walks over
// channels; the threads of a location then add up in shared memory.
template <class Amount, int W>
struct PlanarLocations {
  static constexpr bool kChannelsInside = false;

  // visit(place, amount): adds what W neighbours amount to.
  template <class Visit>
  static CKD_DEVICE void mean_over_channels(const Extent& e, const LocationTile& tile, float* map, Visit&& visit) {
    Amount* shared = reinterpret_cast<Amount*>(ckd_dynamic_shared);  // [deep, width]
    const int depth = static_cast<int>(threadIdx.x) / tile.across;
    const int left = (static_cast<int>(threadIdx.x) - depth * tile.across) * W;
    const int width = tile.across * W;
    const Parts plane = tile.by_tiles.split(blockIdx.x);
    const int64_t first = plane.remainder * width;
    Amount amount[W] = {};
    if (first + left < e.inner) {
      for (int64_t channel = depth; channel < e.channels; channel += tile.deep) {
        visit(e.place(plane.quotient, channel, first + left), amount);
      }
    }
#pragma unroll
    for (int j = 0; j < W; ++j) shared[depth * width + left + j] = amount[j];
    __syncthreads();
    for (int i = threadIdx.x; i < width && first + i < e.inner; i += blockDim.x) {
      Amount sum = shared[i];
      for (int d = 1; d < tile.deep; ++d) sum += shared[d * width + i];
      map[plane.quotient * e.inner + first + i] = mean(sum, location_total(e));
    }
  }
};

// Channels innermost (channels-last): `deep` neighbouring lanes of a warp walk along the channels of one location.
template <class Amount, int W>
struct RowLocations {
  static constexpr bool kChannelsInside = true;

  template <class Visit>
  static CKD_DEVICE void mean_over_channels(const Extent& e, const LocationTile& tile, float* map, Visit&& visit) {
    const int across = static_cast<int>(threadIdx.x) / tile.deep;
    const int lane = static_cast<int>(threadIdx.x) - across * tile.deep;
    const int64_t location = static_cast<int64_t>(blockIdx.x) * tile.across + across, locations = e.rows();
    Amount amount[W] = {};
    if (location < locations) {
      for (int64_t channel = lane * W; channel < e.channels; channel += tile.deep * W) {
        visit(e.place(location, channel, 0), amount);
      }
    }
    // All lanes are here, also those beyond the last location: a shuffle needs them.
    Amount sum = amount[0];
#pragma unroll
    for (int j = 1; j < W; ++j) sum += amount[j];
    for (int apart = tile.deep / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, apart);
    if (lane == 0 && location < locations) map[location] = mean(sum, location_total(e));
  }
};

}  // namespace ckd::cuda
