// How a call is cut into pieces that fit in cache, and the pieces given to threads.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ckd/cpu.h"

namespace ckd::cpu::CKD_ISA {

// Elements that a kernel carries through all time steps at once; every temporary has room for a tile.
inline constexpr int64_t kTile = 2048;

// Few steps: the rows of one tile continue those of the tile before it, so a tile whose temporaries stay in L1
// is best. Many steps: each row is a stream that starts anew, and long rows (in L2) start fewer of them; fewer still
// where rows are `converted` on the way, whose copies had better be in L1.
inline int64_t tile_for(int64_t steps, bool converted) {
  return steps == 1 ? 1024 : steps <= 4 ? 256 : converted ? 512 : kTile;
}

// How a group of steps goes through the rows of a tile, in bytes of a row: a block at a time, and lines are prefetched
// so far ahead, to be read and to be written. An output's memory is seldom in cache, and a store waits for
// its line as a load does.
struct Reach {
  int64_t block, to_read, to_write;
};

// Whole tiles, with nothing prefetched.
inline constexpr Reach kNoReach{kTile * 8, 0, 0};

// Rows of many steps are streams that start anew with every tile. The processor by itself looks far enough ahead of
// those that are read; to prefetch them, too, takes the place of other lines.
inline Reach reach_for(int64_t steps, bool converted) {
  // Its own prefetchers do better alone (seen on Zen 4).
  if (processor().is_amd) return kNoReach;
  return steps <= 4 || converted ? Reach{steps == 1 ? 1024 : 256, 2048, 1024} : Reach{512, 0, 512};
}

// A run of one outer index' frame that one thread works off, and which of `parts` it belongs to.
struct Span {
  int64_t part, outer, begin, end;
};

// The cut depends on the shape alone, so that sums over parts do not depend on the number of threads.
class Cut {
 public:
  // `quantum`: a span begins and ends at its multiples (or at the frame's end). `sums`: how many a part keeps of its
  // own.
  Cut(const Shape& shape, int64_t quantum, int64_t sums = 0) : frame_(shape.frame()), quantum_(quantum) {
    per_outer_ = (frame_ + quantum - 1) / quantum;
    units_ = shape.outer * per_outer_;
    const int64_t elements = shape.outer * frame_ * shape.steps;
    parts_ = std::min<int64_t>(units_, kMaxParts);
    if (sums > 0) parts_ = std::min(parts_, std::max<int64_t>(1, elements / (kElementsPerSum * sums)));
    small_ = elements < kSerialElements;
  }

  int64_t parts() const { return parts_; }

  // Calls make()(span) for all spans, with one make() a thread; spans of one part run in order in one thread.
  template <class Make>
  void run(int threads, const Make& make) const {
    const auto part = [&](auto& work, int64_t p) {
      const int64_t last = units_ * (p + 1) / parts_;
      for (int64_t unit = units_ * p / parts_; unit < last;) {
        const int64_t outer = unit / per_outer_, stop = std::min(last, (outer + 1) * per_outer_);
        const int64_t begin = (unit - outer * per_outer_) * quantum_;
        work(Span{p, outer, begin, std::min(frame_, (stop - outer * per_outer_) * quantum_)});
        unit = stop;
      }
    };
#pragma omp parallel num_threads(threads) if (threads > 1 && !small_ && parts_ > 1)
    {
      auto work = make();
#pragma omp for schedule(static)
      for (int64_t p = 0; p < parts_; ++p) part(work, p);
    }
  }

 private:
  static constexpr int64_t kMaxParts = 256;
  // Sums of parts are cleared and added up, which takes no time beside the elements where those are many more.
  static constexpr int64_t kElementsPerSum = 64;
  // Below this, starting threads takes longer than the work.
  static constexpr int64_t kSerialElements = 1 << 15;
  int64_t frame_, quantum_, per_outer_ = 0, units_ = 0, parts_ = 0;
  bool small_ = false;
};

// Sums that each part of a cut has of its own, so that the total does not depend on which thread did what when.
class PartialSums {
 public:
  PartialSums(int64_t parts, int64_t values) : values_(values), sums_(parts * values, 0.0) {}

  double* of(int64_t part) { return sums_.data() + part * values_; }

  std::vector<double> total() const {
    std::vector<double> total(values_, 0.0);
    for (auto from = sums_.begin(); from != sums_.end(); from += values_) {
      for (int64_t i = 0; i < values_; ++i) total[i] += from[i];
    }
    return total;
  }

 private:
  int64_t values_;
  std::vector<double> sums_;
};

// Where inner is 1: calls f(first channel, begin, end) for the runs of one row in [begin, end) of a frame, with begin
// and end counted from the range's own start.
template <class F>
inline void for_each_channel_run(const Shape& shape, int64_t begin, int64_t end, const F& f) {
  int64_t channel = begin % shape.channels;
  for (int64_t at = 0; at < end - begin;) {
    const int64_t stop = std::min(end - begin, at + shape.channels - channel);
    f(channel, at, stop);
    at = stop;
    channel = 0;
  }
}

// Calls f(channel, row, first location, begin, end) for the runs of one channel and row in [begin, end) of a frame,
// with begin and end counted from the range's own start.
template <class F>
inline void for_each_run(const Shape& shape, int64_t begin, int64_t end, const F& f) {
  const int64_t channels = shape.channels, inner = shape.inner;
  int64_t at = begin;
  int64_t plane = begin / inner;  // row * channels + channel
  int64_t location = begin - plane * inner;
  int64_t row = plane / channels, channel = plane - row * channels;
  while (at < end) {
    const int64_t stop = std::min(end, at + inner - location);
    f(channel, row, location, at - begin, stop - begin);
    at = stop;
    location = 0;
    if (++channel == channels) {
      channel = 0;
      ++row;
    }
  }
}

}  // namespace ckd::cpu::CKD_ISA
