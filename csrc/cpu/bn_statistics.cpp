// Mean and variance of every channel.
#include "ckd/cpu.h"
#include "cpu/memory/sums.h"
#include "cpu/memory/threads.h"

namespace ckd::cpu::CKD_ISA {
namespace {

// Deviations from a pivot that is a member of the data, in double precision, so that one pass over them is accurate.

// Vectors in a line of the cache.
template <class S>
inline constexpr int kLine = 64 / sizeof(typename S::Raw) / DoubleLanes::kCount;

// Of bfloat16, whose values are good to three digits, a few terms are added up in float before they join the rest: the
// way of every value to double takes longer than its way from memory.
template <class S>
inline constexpr bool kShort = std::is_same_v<S, BFloat16>;

typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
inline constexpr int kFloats = 16;

// Adds the lanes of a vector to those of two vectors of double precision.
CKD_FN void join(const Floats& floats, DoubleLanes* sums) {
  uint32_t raw[kFloats];
  std::memcpy(raw, &floats, sizeof raw);
  sums[0] = sums[0] + DoubleLanes::load<Float32>(raw);
  sums[1] = sums[1] + DoubleLanes::load<Float32>(raw + DoubleLanes::kCount);
}

// Adds those of whole blocks of lines in a row of one channel, and their squares; returns where they end.
template <int kLines>
CKD_FN int64_t add_blocks(const uint16_t* row, int64_t i, int64_t n, float pivot, DoubleLanes* sums,
                          DoubleLanes* squares) {
  for (; i + kLines * 2 * kFloats <= n; i += kLines * 2 * kFloats) {
    Floats sum{}, square{};
#pragma GCC unroll 4
    for (int j = 0; j < kLines; ++j) {
      const uint16_t* line = row + i + j * 2 * kFloats;
      prefetch(line);
      Words pairs;
      std::memcpy(&pairs, line, sizeof pairs);
      const Floats even = reinterpret_cast<Floats>(pairs << 16) - pivot;
      const Floats odd = reinterpret_cast<Floats>(pairs & 0xFFFF0000u) - pivot;
      sum += even + odd;
      square += even * even + odd * odd;
    }
    join(sum, sums);
    join(square, squares);
  }
  return i;
}

// Adds those of a row of one channel, and their squares.
template <class S>
void add_run(const typename S::Raw* row, int64_t n, double pivot, double* sum, double* squares) {
  const DoubleLanes pivots(pivot);
  constexpr int kChains = 2;  // additions that do not wait for each other
  DoubleLanes sums[kChains], sums_of_squares[kChains];
  const auto add = [&](const typename S::Raw* from, int j) {
    const DoubleLanes d = DoubleLanes::load<S>(from) - pivots;
    sums[j] = sums[j] + d;
    sums_of_squares[j] = sums_of_squares[j] + d * d;
  };
  int64_t i = 0;
  if constexpr (kShort<S>) {
    i = add_blocks<4>(row, i, n, static_cast<float>(pivot), sums, sums_of_squares);
    i = add_blocks<2>(row, i, n, static_cast<float>(pivot), sums, sums_of_squares);
  }
  for (; i + kLine<S> * DoubleLanes::kCount <= n; i += kLine<S> * DoubleLanes::kCount) {
    prefetch(row + i);
#pragma GCC unroll 4
    for (int j = 0; j < kLine<S>; ++j) add(row + i + j * DoubleLanes::kCount, j % kChains);
  }
  for (; i + DoubleLanes::kCount <= n; i += DoubleLanes::kCount) add(row + i, 0);
  DoubleLanes::Two totals = DoubleLanes::totals(sums[0] + sums[1], sums_of_squares[0] + sums_of_squares[1]);
  for (; i < n; ++i) {
    const double d = S::get(row[i]) - pivot;
    totals += DoubleLanes::Two{d, d * d};
  }
  *sum += totals[0];
  *squares += totals[1];
}

// The same of a few vectors out of `count` rows, each of a channel's own.
template <class S, int kVectors>
inline void add_columns(const typename S::Raw* rows, int64_t count, int64_t stride, const double* pivot, double* sum,
                        double* squares) {
  DoubleLanes pivots[kVectors], s[kVectors], q[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    pivots[j] = DoubleLanes(pivot + j * DoubleLanes::kCount);
    s[j] = DoubleLanes(sum + j * DoubleLanes::kCount);
    q[j] = DoubleLanes(squares + j * DoubleLanes::kCount);
  }
  for (int64_t row = 0; row < count; ++row, rows += stride) {
    __builtin_prefetch(rows + count * stride);  // of as many rows that come next
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      const DoubleLanes d = DoubleLanes::load<S>(rows + j * DoubleLanes::kCount) - pivots[j];
      s[j] = s[j] + d;
      q[j] = q[j] + d * d;
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) {
    s[j].store(sum + j * DoubleLanes::kCount);
    q[j].store(squares + j * DoubleLanes::kCount);
  }
}

// The same, of 16 channels, with the terms of all rows added up in float.
inline void add_short_columns(const uint16_t* rows, int64_t count, int64_t stride, const double* pivot, double* sum,
                              double* squares) {
  typedef double Doubles __attribute__((vector_size(128)));
  Doubles exact;
  std::memcpy(&exact, pivot, sizeof exact);
  const Floats pivots = __builtin_convertvector(exact, Floats);
  Floats s{}, q{};
  for (int64_t row = 0; row < count; ++row, rows += stride) {
    __builtin_prefetch(rows + count * stride);
    typedef uint16_t Halves __attribute__((vector_size(32)));
    Halves halves;
    std::memcpy(&halves, rows, sizeof halves);
    const Floats d = reinterpret_cast<Floats>(__builtin_convertvector(halves, Words) << 16) - pivots;
    s += d;
    q += d * d;
  }
  const auto join = [](const Floats& floats, double* to) {
    Doubles before;
    std::memcpy(&before, to, sizeof before);
    before += __builtin_convertvector(floats, Doubles);
    std::memcpy(to, &before, sizeof before);
  };
  join(s, sum);
  join(q, squares);
}

// The same of `count` rows of one element a channel, side by side.
template <class S>
void add_rows(const typename S::Raw* rows, int64_t count, int64_t stride, int64_t n, const double* pivot, double* sum,
              double* squares) {
  int64_t i = 0;
  if constexpr (kShort<S>) {
    for (; i + kFloats <= n; i += kFloats) {
      add_short_columns(rows + i, count, stride, pivot + i, sum + i, squares + i);
    }
  }
  for (; i + kLine<S> * DoubleLanes::kCount <= n; i += kLine<S> * DoubleLanes::kCount) {
    add_columns<S, kLine<S>>(rows + i, count, stride, pivot + i, sum + i, squares + i);
  }
  for (; i + DoubleLanes::kCount <= n; i += DoubleLanes::kCount) {
    add_columns<S, 1>(rows + i, count, stride, pivot + i, sum + i, squares + i);
  }
  for (; i < n; ++i) {
    for (int64_t row = 0; row < count; ++row) {
      const double d = S::get(rows[row * stride + i]) - pivot[i];
      sum[i] += d;
      squares[i] += d * d;
    }
  }
}

template <class S>
void statistics(const BatchStatistics& call, int threads) {
  using Raw = typename S::Raw;
  const int64_t channels = call.shape.channels;
  const Raw* y = static_cast<const Raw*>(call.y);
  // To add up, time is one more dimension outside: a frame at a time, read as it lies.
  Shape shape = call.shape;
  shape.outer *= shape.repeated ? 1 : shape.steps;
  shape.steps = 1;
  std::vector<double> pivots(channels);
  for (int64_t c = 0; c < channels; ++c) pivots[c] = S::get(y[c * shape.inner]);
  const Cut cut(shape, kTile, 2 * channels);
  PartialSums partial(cut.parts(), 2 * channels);
  cut.run(threads, [&] {
    return [&](const Span& span) {
      double *sum = partial.of(span.part), *squares = sum + channels;
      const Raw* row = y + span.outer * shape.frame() + span.begin;
      if (shape.inner == 1) {
        constexpr int64_t kSideBySide = 8;
        int64_t whole = 0;  // rows that are done with, beyond the one that a run belongs to
        for_each_channel_run(shape, span.begin, span.end, [&](int64_t channel, int64_t b, int64_t e) {
          if (whole > 0) return void(--whole);
          const int64_t rows = e - b < channels ? 1 : std::min(kSideBySide, (span.end - span.begin - b) / channels);
          add_rows<S>(row + b, rows, channels, e - b, pivots.data() + channel, sum + channel, squares + channel);
          whole = rows - 1;
        });
        return;
      }
      for_each_run(shape, span.begin, span.end, [&](int64_t channel, int64_t, int64_t, int64_t b, int64_t e) {
        add_run<S>(row + b, e - b, pivots[channel], sum + channel, squares + channel);
      });
    };
  });
  const std::vector<double> sums = partial.total();
  const double count = static_cast<double>(shape.outer * shape.rows * shape.inner);
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = sums[c], variance = (sums[channels + c] - sum * sum / count) / count;
    call.moments[c] = pivots[c] + sum / count;
    call.moments[channels + c] = variance < 0 ? 0 : variance;
  }
}

}  // namespace

void run(const BatchStatistics& call, int threads) {
  with_storage(call.dtype, [&](auto s) { statistics<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
