// Rows of consecutive time steps: where they lie in a tensor, and how time and elements are cut into them.
#pragma once
#include <algorithm>
#include <type_traits>

#include "cpu/memory/dtype.h"

namespace ckd::cpu::CKD_ISA {

inline constexpr int kGroup = 4;  // time steps at once; what is left over runs as 2 and 1

// Rows of consecutive time steps: element i of step g is at first[g*stride + i].
template <class T>
struct Rows {
  T* first;
  int64_t stride;
  Rows from(int64_t i) const { return {first + i, stride}; }
};

// Rows of the arithmetic's type as rows of a storage type.
template <class T>
inline auto as_raw(Rows<T> rows) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  using Raw = std::conditional_t<std::is_const_v<T>, const Bits, Bits>;
  return Rows<Raw>{reinterpret_cast<Raw*>(rows.first), rows.stride};
}

// Where a row of a tile lies in the tensors of a call.
struct Address {
  int64_t outer, frame, steps, x_steps;
  explicit Address(const Shape& s)
      : outer(s.outer), frame(s.frame()), steps(s.steps), x_steps(s.repeated ? 1 : s.steps) {}
  int64_t elements() const { return outer * steps * frame; }
  int64_t x_elements() const { return outer * x_steps * frame; }
  int64_t state(int64_t outer, int64_t begin) const { return outer * frame + begin; }
  int64_t step(int64_t outer, int64_t t, int64_t begin) const { return (outer * steps + t) * frame + begin; }
  int64_t x(int64_t outer, int64_t t, int64_t begin) const {
    return (outer * x_steps + (x_steps == 1 ? 0 : t)) * frame + begin;
  }
};

// Prefetches what lies so many bytes ahead of `count` rows of n elements, to be written where it is not const; with 0,
// nothing.
template <class T>
inline void prefetch_rows(Rows<T> rows, int64_t count, int64_t n, int64_t ahead) {
  if (ahead == 0 || !rows.first) return;
  for (int64_t row = 0; row < count; ++row) {
    for (T *at = rows.first + row * rows.stride, *end = at + n; at < end; at += 64 / sizeof(T)) {
      if constexpr (std::is_const_v<T>) {
        prefetch(at, ahead);
      } else {
        prefetch_to_write(at, ahead);
      }
    }
  }
}

// Calls f(begin, length) for the blocks of n elements.
template <class F>
inline void in_blocks(int64_t n, int64_t block, const F& f) {
  for (int64_t begin = 0; begin < n; begin += block) f(begin, std::min(block, n - begin));
}

// Whether so many steps are one group.
inline bool is_one_group(int64_t steps) { return steps == kGroup || steps == 2 || steps == 1; }

// Calls f(first, last) for the chunks of steps between checkpoints, from last to first.
template <class F>
inline void in_chunks_backward(int64_t steps, const F& f) {
  for (int64_t chunk = checkpoint_count(steps); chunk >= 0; --chunk) {
    f(chunk * kCheckpointEvery, std::min<int64_t>(steps, (chunk + 1) * kCheckpointEvery));
  }
}

// Calls f(first step, integral_constant<G>) for groups of steps that cover [first, last) in order.
template <class F>
inline void in_groups(int64_t first, int64_t last, const F& f) {
  int64_t t = first;
  for (; t + kGroup <= last; t += kGroup) f(t, std::integral_constant<int, kGroup>{});
  for (; t + 2 <= last; t += 2) f(t, std::integral_constant<int, 2>{});
  for (; t < last; ++t) f(t, std::integral_constant<int, 1>{});
}

// The same groups from last to first.
template <class F>
inline void in_groups_backward(int64_t first, int64_t last, const F& f) {
  const int64_t left_over = (last - first) % kGroup;
  if (left_over & 1) f(last - 1, std::integral_constant<int, 1>{});
  if (left_over & 2) f(last - left_over, std::integral_constant<int, 2>{});
  for (int64_t t = last - left_over - kGroup; t >= first; t -= kGroup) f(t, std::integral_constant<int, kGroup>{});
}

}  // namespace ckd::cpu::CKD_ISA
