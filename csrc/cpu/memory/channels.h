// Values of channels and locations broadcast over rows of a tile's elements, as `plain_nan`s, and sums of rows back.
#pragma once
#include "cpu/memory/dtype.h"
#include "cpu/memory/sums.h"
#include "cpu/memory/threads.h"

namespace ckd::cpu::CKD_ISA {

template <class Real>
inline void fill_row(Real value, int64_t n, Real* __restrict row) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) row[i] = value;
}

// row[i] = value of the element's channel, for the elements [begin, end) of a frame.
template <class Real>
inline void broadcast_channels(const Shape& shape, int64_t begin, int64_t end, const Real* values, Real* row) {
  if (shape.inner == 1) {
    return for_each_channel_run(shape, begin, end, [&](int64_t channel, int64_t b, int64_t e) {
      CKD_SIMD
      for (int64_t i = 0; i < e - b; ++i) row[b + i] = plain_nan(values[channel + i]);
    });
  }
  for_each_run(shape, begin, end, [&](int64_t channel, int64_t, int64_t, int64_t b, int64_t e) {
    fill_row(plain_nan(values[channel]), e - b, row + b);
  });
}

// Elements of a frame that may share one value of their channel.
inline constexpr int64_t kBlock = 64;

// Whether all blocks of a frame lie in one channel each.
inline bool has_channel_blocks(const Shape& shape) { return shape.inner % kBlock == 0; }

// Per-channel values broadcast over rows of a tile's elements, and filled anew only where the tile's channels are not
// those of the tile before. Where a call `has_blocks`, a row holds one value for each block of elements instead, which
// takes next to no time to fill.
template <class Real>
class ChannelRows {
 public:
  ChannelRows(const Shape& shape, bool has_blocks) : shape_(shape), has_blocks_(has_blocks) {}

  // The row that such values are broadcast to, where they are given.
  const Real* add(const void* values, Real* row) {
    if (values) rows_.push_back({static_cast<const Real*>(values), row});
    return row;
  }

  // Goes to the elements [begin, end) of a frame.
  void start(int64_t begin, int64_t end) {
    if (has_blocks_) return fill_blocks(begin, end);
    const int64_t n = end - begin, period = shape_.channels * shape_.inner;
    if (n <= filled_ && ((begin >= run_begin_ && end <= run_end_) || (begin - begin_) % period == 0)) return;
    if (shape_.inner == 1) {
      for (const auto& [values, row] : rows_) broadcast_channels(shape_, begin, end, values, row);
    } else {
      for_each_run(shape_, begin, end, [&](int64_t channel, int64_t, int64_t, int64_t b, int64_t e) {
        for (const auto& [values, row] : rows_) fill_row(plain_nan(values[channel]), e - b, row + b);
      });
    }
    begin_ = begin;
    filled_ = n;
    run_begin_ = begin / shape_.inner * shape_.inner;
    run_end_ = end <= run_begin_ + shape_.inner ? run_begin_ + shape_.inner : run_begin_;
  }

 private:
  struct Row {
    const Real* values;
    Real* row;
  };

  void fill_blocks(int64_t begin, int64_t end) {
    const int64_t plane = begin / shape_.inner;
    int64_t location = begin - plane * shape_.inner, channel = plane % shape_.channels;
    for (int64_t block = 0; block < (end - begin) / kBlock; ++block) {
      for (const auto& [values, row] : rows_) row[block] = plain_nan(values[channel]);
      location += kBlock;
      if (location < shape_.inner) continue;
      location = 0;
      channel = channel + 1 < shape_.channels ? channel + 1 : 0;
    }
  }

  const Shape& shape_;
  const bool has_blocks_;
  std::vector<Row> rows_;
  int64_t begin_ = 0, filled_ = -1;      // where the rows were filled, and how far
  int64_t run_begin_ = 0, run_end_ = 0;  // the run of one channel that they were filled in, if it was one
};

// sums[channel] += row[i], in double precision.
template <class Real>
inline void gather_channels(const Shape& shape, int64_t begin, int64_t end, const Real* row, double* sums) {
  if (shape.inner == 1) {
    return for_each_channel_run(shape, begin, end, [&](int64_t channel, int64_t b, int64_t e) {
      CKD_SIMD
      for (int64_t i = 0; i < e - b; ++i) sums[channel + i] += row[b + i];
    });
  }
  for_each_run(shape, begin, end, [&](int64_t channel, int64_t, int64_t, int64_t b, int64_t e) {
    sums[channel] += sum_row(row + b, e - b);
  });
}

// Two rows at once.
template <class Real>
inline void gather_channels(const Shape& shape, int64_t begin, int64_t end, const Real* first, double* first_sums,
                            const Real* second, double* second_sums) {
  if (shape.inner == 1) {
    gather_channels(shape, begin, end, first, first_sums);
    return gather_channels(shape, begin, end, second, second_sums);
  }
  for_each_run(shape, begin, end, [&](int64_t channel, int64_t, int64_t, int64_t b, int64_t e) {
    const DoubleLanes::Two sums = sum_rows(first + b, second + b, e - b);
    first_sums[channel] += sums[0];
    second_sums[channel] += sums[1];
  });
}

// row[i] = value of the element's location times `factor`; `values` is one outer index' map [rows, inner].
template <class Real>
inline void broadcast_locations(const Shape& shape, int64_t begin, int64_t end, const float* values, Real factor,
                                Real* row) {
  if (shape.inner == 1) {
    return for_each_channel_run(shape, begin, end, [&](int64_t, int64_t b, int64_t e) {
      fill_row(plain_nan(Real(values[(begin + b) / shape.channels])) * factor, e - b, row + b);
    });
  }
  for_each_run(shape, begin, end, [&](int64_t, int64_t map_row, int64_t location, int64_t b, int64_t e) {
    const float* from = values + map_row * shape.inner + location;
    CKD_SIMD
    for (int64_t i = 0; i < e - b; ++i) row[b + i] = plain_nan(Real(from[i])) * factor;
  });
}

// map[location] += row[i]; `map` is one outer index' map [rows, inner].
template <class Value, class Sum>
inline void gather_locations(const Shape& shape, int64_t begin, int64_t end, const Value* row, Sum* map) {
  if (shape.inner == 1) {
    return for_each_channel_run(shape, begin, end, [&](int64_t, int64_t b, int64_t e) {
      Sum sum = 0;
      for (int64_t i = b; i < e; ++i) sum += static_cast<Sum>(row[i]);
      map[(begin + b) / shape.channels] += sum;
    });
  }
  for_each_run(shape, begin, end, [&](int64_t, int64_t map_row, int64_t location, int64_t b, int64_t e) {
    Sum* to = map + map_row * shape.inner + location;
    CKD_SIMD
    for (int64_t i = 0; i < e - b; ++i) to[i] += static_cast<Sum>(row[b + i]);
  });
}

}  // namespace ckd::cpu::CKD_ISA
