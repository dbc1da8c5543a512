// Sums over all but channels, two values a channel, in double precision. A block adds up a slice of a channel (NCHW) or
// of some neighbouring ones (channels-last), and a second kernel the slices. The cut depends on sizes alone and the
// order of additions is fixed, so the bits are the same run to run.
#pragma once
#include "extent.cuh"
#include "launch.h"

namespace ckd::cuda {

// planes: all dimensions outside channels. A block is `across` threads side by side times `deep` ones that share their
// channels.
struct ChannelCut {
  int64_t planes, channels, inner;
  int across, deep;
  int64_t slices, per_slice;  // of the vectors of a channel, or of planes
  double* partials;           // [2, channels, slices]

  CKD_DEVICE double* partial(int sum, int64_t channel, int64_t slice) const {
    return partials + (sum * channels + channel) * slices + slice;
  }
};

// Adds up what threads `across` apart hold; the threads of depth 0 are left with the sums.
template <int kValues>
CKD_DEVICE void add_depths(const ChannelCut& cut, double (&values)[kValues]) {
  double* shared = reinterpret_cast<double*>(ckd_dynamic_shared);  // [values, threads]
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  __syncthreads();  // whatever the threads kept here before
#pragma unroll
  for (int i = 0; i < kValues; ++i) shared[i * threads + thread] = values[i];
  for (int half = cut.deep / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread >= half * cut.across) continue;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      values[i] += shared[i * threads + thread + half * cut.across];
      shared[i * threads + thread] = values[i];
    }
  }
}

// What a thread adds up: of a channel, or of W from it on; none where it lies beyond the last.
struct ChannelShare {
  int64_t channel, slice;
  bool any;
};

// W neighbours are of one channel.
template <int W>
struct PlanarChannels {
  static constexpr bool kChannelsInside = false;
  static constexpr int kValues = 2;

  static CKD_DEVICE ChannelShare share(const ChannelCut& cut) {
    const Parts block = split(blockIdx.x, cut.channels);
    return {block.remainder, block.quotient, true};
  }

  // Visits kBatch vectors at a time: load(plane, column) of all of them comes before add(loaded, values) of the first,
  // which adds to the values of this thread's channels.
  template <int kBatch, class Load, class Add>
  static CKD_DEVICE void sum(const ChannelCut& cut, const ChannelShare& share, Load&& load, Add&& add) {
    const int64_t channel = share.channel, slice = share.slice, row = cut.inner / W;
    const int64_t begin = slice * cut.per_slice, all = cut.planes * row;
    const int64_t end = begin + cut.per_slice < all ? begin + cut.per_slice : all;
    const int64_t first = begin + threadIdx.x;
    Parts at = split(first, row);
    const Parts stride = split(blockDim.x, row);
    double values[2] = {};
    for (int64_t i = first; i < end; i += int64_t{kBatch} * blockDim.x) {
      decltype(load(0, 0)) loaded[kBatch];
      bool inside[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        inside[b] = i + b * int64_t{blockDim.x} < end;
        if (inside[b]) loaded[b] = load(at.quotient, at.remainder * W);
        at = {at.quotient + stride.quotient, at.remainder + stride.remainder};
        if (at.remainder >= row) at = {at.quotient + 1, at.remainder - row};
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (inside[b]) add(loaded[b], values);
      }
    }
    add_depths(cut, values);
    if (threadIdx.x != 0) return;
    *cut.partial(0, channel, slice) = values[0];
    *cut.partial(1, channel, slice) = values[1];
  }

  static CKD_DEVICE void accumulate(double (&values)[2], int, double first, double second) {
    values[0] += first;
    values[1] += second;
  }
};

// W neighbours are of W channels, in one plane.
template <int W>
struct RowChannels {
  static constexpr bool kChannelsInside = true;
  static constexpr int kValues = 2 * W;

  static CKD_DEVICE ChannelShare share(const ChannelCut& cut) {
    const int lane = static_cast<int>(threadIdx.x) % cut.across;
    const int64_t width = int64_t{cut.across} * W;
    const Parts block = split(blockIdx.x, (cut.channels + width - 1) / width);
    const int64_t channel = block.remainder * width + lane * W;
    return {channel, block.quotient, channel < cut.channels};
  }

  template <int kBatch, class Load, class Add>
  static CKD_DEVICE void sum(const ChannelCut& cut, const ChannelShare& share, Load&& load, Add&& add) {
    const int depth = static_cast<int>(threadIdx.x) / cut.across;
    const int64_t channel = share.channel, slice = share.slice;
    const int64_t begin = slice * cut.per_slice;
    const int64_t end = begin + cut.per_slice < cut.planes ? begin + cut.per_slice : cut.planes;
    double values[2 * W] = {};
    if (share.any) {
      for (int64_t plane = begin + depth; plane < end; plane += int64_t{kBatch} * cut.deep) {
        decltype(load(0, 0)) loaded[kBatch];
        bool inside[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          inside[b] = plane + b * int64_t{cut.deep} < end;
          if (inside[b]) loaded[b] = load(plane + b * int64_t{cut.deep}, 0);
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
          if (inside[b]) add(loaded[b], values);
        }
      }
    }
    add_depths(cut, values);
    if (depth != 0 || !share.any) return;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      *cut.partial(0, channel + j, slice) = values[j];
      *cut.partial(1, channel + j, slice) = values[W + j];
    }
  }

  static CKD_DEVICE void accumulate(double (&values)[2 * W], int j, double first, double second) {
    values[j] += first;
    values[W + j] += second;
  }
};

inline constexpr int kFinishThreads = 256;

// A warp for each channel adds its slices up; call.finish(channel, first, second) is what comes of them.
template <class Call>
__global__ void __launch_bounds__(kFinishThreads) add_slices_kernel(const __grid_constant__ Call call) {
  const ChannelCut& cut = call.cut;
  const int64_t channel = (int64_t{blockIdx.x} * kFinishThreads + threadIdx.x) / 32;
  if (channel >= cut.channels) return;
  double first = 0, second = 0;
  for (int64_t slice = threadIdx.x % 32; slice < cut.slices; slice += 32) {
    first += *cut.partial(0, channel, slice);
    second += *cut.partial(1, channel, slice);
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    first += __shfl_xor_sync(0xffffffffu, first, apart);
    second += __shfl_xor_sync(0xffffffffu, second, apart);
  }
  if (threadIdx.x % 32 == 0) call.finish(channel, first, second);
}

inline ChannelCut channel_cut(int64_t planes, int64_t channels, int64_t inner, const ChannelSize& size,
                              void* workspace) {
  return {planes,    channels,    inner,          size.across,
          size.deep, size.slices, size.per_slice, static_cast<double*>(workspace)};
}

inline int64_t partial_bytes(int64_t channels, const ChannelSize& size) {
  return 2 * channels * size.slices * int64_t{sizeof(double)};
}

template <class Call>
cudaError_t launch_add_slices(const Call& call, void* stream) {
  const LaunchSize size{block_count(call.cut.channels, kFinishThreads / 32), kFinishThreads, 0};
  return launch(add_slices_kernel<Call>, size, stream, call);
}

}  // namespace ckd::cuda
