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
  Divider by_tiles, by_row;   // blocks side by side; vectors of a channel's row
  int64_t slices, per_slice;  // of the vectors of a channel, or of planes
  int64_t sums_at;            // where a block's sums lie in shared memory, behind what a kernel keeps there
  double* partials;           // [2, channels, slices]

  CKD_DEVICE double* partial(int sum, int64_t channel, int64_t slice) const {
    return partials + (sum * channels + channel) * slices + slice;
  }
};

// Vectors of a visit that are loaded, but for those beyond the last.
template <class Loaded, int kBatch>
struct InFlight {
  Loaded loaded[kBatch];
  bool inside[kBatch];

  template <class Use>
  CKD_DEVICE void use(Use&& use) const {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (inside[b]) use(loaded[b]);
    }
  }

  // All from `at` on: fetch(at) fills this; with kAhead, with the next vectors while these are used.
  template <bool kAhead, class Fetch, class Use>
  CKD_DEVICE void visit(int64_t at, int64_t end, int64_t step, Fetch&& fetch, Use&& use_one) {
    if constexpr (kAhead) {
      fetch(at);
#pragma unroll 1
      for (; at < end; at += step) {
        const InFlight now = *this;
        fetch(at + step);
        now.use(use_one);
      }
    } else {
#pragma unroll 1
      for (; at < end; at += step) {
        fetch(at);
        use(use_one);
      }
    }
  }
};

// The sum over a warp, in all its threads.
CKD_DEVICE double warp_sum(double value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  return value;
}

// In the pass that follows a reading pass: what was read last is the likeliest to be in a cache still.
CKD_DEVICE unsigned last_block_first() { return gridDim.x - 1 - blockIdx.x; }

// What a thread adds up: of a channel, or of W from it on; none where it lies beyond the last.
struct ChannelShare {
  int64_t channel, slice;
  bool any;
};

// W neighbours are of one channel.
template <int W>
struct PlanarChannels {
  static constexpr bool kChannelsInside = false;

  static CKD_DEVICE ChannelShare share(const ChannelCut& cut, unsigned index) {
    const Parts block = cut.by_tiles.split(index);
    return {block.remainder, block.quotient, true};
  }

  // Visits kBatch vectors at a time with use(loaded); with kAhead, load(plane, column) of the next ones is in flight
  // meanwhile.
  template <int kBatch, bool kAhead, class Load, class Use>
  static CKD_DEVICE void visit(const ChannelCut& cut, const ChannelShare& share, Load&& load, Use&& use) {
    const int64_t row = cut.by_row.divisor, begin = share.slice * cut.per_slice, all = cut.planes * row;
    const int64_t end = begin + cut.per_slice < all ? begin + cut.per_slice : all;
    const Parts stride = cut.by_row.split(blockDim.x);
    Parts at = cut.by_row.split(begin + threadIdx.x);
    InFlight<decltype(load(0, 0)), kBatch> next;
    const auto fetch = [&](int64_t first) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        next.inside[b] = first + b * int64_t{blockDim.x} < end;
        if (next.inside[b]) next.loaded[b] = load(at.quotient, at.remainder * W);
        at = {at.quotient + stride.quotient, at.remainder + stride.remainder};
        if (at.remainder >= row) at = {at.quotient + 1, at.remainder - row};
      }
    };
    const int64_t step = int64_t{kBatch} * blockDim.x;
    next.template visit<kAhead>(begin + threadIdx.x, end, step, fetch, use);
  }

  // Two sums of a thread in double precision, and of its block.
  class Sums {
    double first_ = 0, second_ = 0;

   public:
    CKD_DEVICE explicit Sums(const ChannelCut&) {}
    CKD_DEVICE void add(int, double first, double second) {
      first_ += first;
      second_ += second;
    }
    // Of W neighbours.
    CKD_DEVICE void add(const float (&first)[W], const float (&second)[W]) { add(0, total(first), total(second)); }

    CKD_DEVICE void store(const ChannelCut& cut, const ChannelShare& share) {
      double* shared = reinterpret_cast<double*>(ckd_dynamic_shared + cut.sums_at);  // [2, warps]
      const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
      first_ = warp_sum(first_);
      second_ = warp_sum(second_);
      if (threadIdx.x % 32 == 0) {
        shared[warp] = first_;
        shared[warps + warp] = second_;
      }
      __syncthreads();
      if (threadIdx.x > 1) return;
      double sum = 0;
      for (int i = 0; i < warps; ++i) sum += shared[threadIdx.x * warps + i];
      *cut.partial(threadIdx.x, share.channel, share.slice) = sum;
    }
  };
};

// W neighbours are of W channels, in one plane.
template <int W>
struct RowChannels {
  static constexpr bool kChannelsInside = true;

  static CKD_DEVICE ChannelShare share(const ChannelCut& cut, unsigned index) {
    const int lane = static_cast<int>(threadIdx.x) % cut.across;
    const int64_t width = int64_t{cut.across} * W;
    const Parts block = cut.by_tiles.split(index);
    const int64_t channel = block.remainder * width + lane * W;
    return {channel, block.quotient, channel < cut.channels};
  }

  template <int kBatch, bool kAhead, class Load, class Use>
  static CKD_DEVICE void visit(const ChannelCut& cut, const ChannelShare& share, Load&& load, Use&& use) {
    if (!share.any) return;
    const int64_t begin = share.slice * cut.per_slice;
    const int64_t end = begin + cut.per_slice < cut.planes ? begin + cut.per_slice : cut.planes;
    InFlight<decltype(load(0, 0)), kBatch> next;
    const auto fetch = [&](int64_t first) {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int64_t plane = first + b * int64_t{cut.deep};
        next.inside[b] = plane < end;
        if (next.inside[b]) next.loaded[b] = load(plane, 0);
      }
    };
    const int64_t step = int64_t{kBatch} * cut.deep;
    next.template visit<kAhead>(begin + depth(cut), end, step, fetch, use);
  }

  // Two sums for each channel, in shared memory, which leaves registers to what is in flight.
  class Sums {
    double* const shared_;  // [2, W, threads]
    const int thread_ = static_cast<int>(threadIdx.x), threads_ = static_cast<int>(blockDim.x);

    CKD_DEVICE double& at(int i, int beyond = 0) { return shared_[i * threads_ + thread_ + beyond]; }

   public:
    CKD_DEVICE explicit Sums(const ChannelCut& cut)
        : shared_(reinterpret_cast<double*>(ckd_dynamic_shared + cut.sums_at)) {
#pragma unroll
      for (int i = 0; i < 2 * W; ++i) at(i) = 0;
    }
    CKD_DEVICE void add(int j, double first, double second) {
      at(j) += first;
      at(W + j) += second;
    }
    CKD_DEVICE void add(const float (&first)[W], const float (&second)[W]) {
#pragma unroll
      for (int j = 0; j < W; ++j) add(j, first[j], second[j]);
    }

    // Adds up what threads `across` apart hold.
    CKD_DEVICE void store(const ChannelCut& cut, const ChannelShare& share) {
      for (int half = cut.deep / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread_ >= half * cut.across) continue;
#pragma unroll
        for (int i = 0; i < 2 * W; ++i) at(i) += at(i, half * cut.across);
      }
      if (depth(cut) != 0 || !share.any) return;
#pragma unroll
      for (int j = 0; j < W; ++j) {
        *cut.partial(0, share.channel + j, share.slice) = at(j);
        *cut.partial(1, share.channel + j, share.slice) = at(W + j);
      }
    }
  };

 private:
  static CKD_DEVICE int depth(const ChannelCut& cut) { return static_cast<int>(threadIdx.x) / cut.across; }
};

inline constexpr int kFinishThreads = 256;

// Adds the slices of a channel up, a warp for each channel or a whole block; call.finish(channel, first, second) is
// what comes of them.
template <class Call, bool kBlock>
__global__ void __launch_bounds__(kFinishThreads) add_slices_kernel(const __grid_constant__ Call call) {
  constexpr int kThreads = kBlock ? kFinishThreads : 32, kWarps = kThreads / 32;
  const ChannelCut& cut = call.cut;
  let_next_begin();
  wait_for_previous();
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int64_t channel = (int64_t{blockIdx.x} * kFinishThreads + threadIdx.x) / kThreads;
  if (channel >= cut.channels) return;
  double first = 0, second = 0;
  for (int64_t slice = thread; slice < cut.slices; slice += kThreads) {
    first += *cut.partial(0, channel, slice);
    second += *cut.partial(1, channel, slice);
  }
  first = warp_sum(first);
  second = warp_sum(second);
  if constexpr (kBlock) {
    double* sums = reinterpret_cast<double*>(ckd_dynamic_shared);  // [2, warps]
    if (thread % 32 == 0) {
      sums[thread / 32] = first;
      sums[kWarps + thread / 32] = second;
    }
    __syncthreads();
    if (thread > 0) return;
    first = second = 0;
    for (int i = 0; i < kWarps; ++i) {
      first += sums[i];
      second += sums[kWarps + i];
    }
  }
  if (thread == 0) call.finish(channel, first, second);
}

inline ChannelCut channel_cut(int64_t planes, int64_t channels, int64_t inner, int width, const ChannelSize& size,
                              void* workspace) {
  return {planes,
          channels,
          inner,
          size.across,
          size.deep,
          Divider(size.tiles),
          Divider(std::max<int64_t>(inner / width, 1)),
          size.slices,
          size.per_slice,
          size.sums_at,
          static_cast<double*>(workspace)};
}

inline int64_t partial_bytes(int64_t channels, const ChannelSize& size) {
  return 2 * channels * size.slices * int64_t{sizeof(double)};
}

template <class Call>
cudaError_t launch_add_slices(const Call& call, void* stream) {
  constexpr int kManySlices = 64;
  if (call.cut.slices > kManySlices) {
    constexpr size_t kShared = 2 * kFinishThreads / 32 * sizeof(double);
    const LaunchSize size{block_count(call.cut.channels, 1), kFinishThreads, kShared};
    return launch_after(add_slices_kernel<Call, true>, size, stream, call);
  }
  const LaunchSize size{block_count(call.cut.channels, kFinishThreads / 32), kFinishThreads, 0};
  return launch_after(add_slices_kernel<Call, false>, size, stream, call);
}

}  // namespace ckd::cuda
