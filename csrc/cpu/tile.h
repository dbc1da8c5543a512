// What the forward and the backward pass of a tile share: where its rows lie, and how they are filled.
#pragma once
#include <memory>

#include "rows.h"
#include "steps.h"

namespace ckd::cpu::CKD_ISA {

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

// Asks for what lies so many bytes ahead of `count` rows of n elements, or with 0 for nothing: to write it where it is
// not const.
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

// The row of a leak that all channels share.
template <class Call, class Real>
inline void fill_leak(const Call& call, int64_t n, Real* row) {
  const Real* value = static_cast<const Real*>(call.leak);
  fill_row(value ? plain_nan(*value) : Real(call.neuron.leak), n, row);
}

template <class Real>
inline void load_state(const void* from, int64_t at, Real rest, int64_t n, Real* v) {
  if (from) {
    std::memcpy(v, static_cast<const Real*>(from) + at, n * sizeof(Real));
  } else {
    fill_row(rest, n, v);
  }
}

// Rows of temporaries of one tile, all of one length.  They are packed: whole pages apart, the rows of a short tile
// would compete for the same few sets of the cache, and stores would be taken for those that a load has to wait for.
template <class Real>
class Scratch {
 public:
  Scratch(int64_t length, int64_t rows)
      : stride_((length + 15) / 16 * 16 + 16),
        memory_(std::make_unique_for_overwrite<Real[]>(stride_ * rows + 16)),
        next_(memory_.get()) {
    const auto past = reinterpret_cast<uintptr_t>(next_) % 64;
    if (past != 0) next_ += (64 - past) / sizeof(Real);
  }

  int64_t stride() const { return stride_; }

  Real* rows(int64_t count) {
    Real* first = next_;
    next_ += count * stride_;
    return first;
  }

 private:
  int64_t stride_;
  std::unique_ptr<Real[]> memory_;
  Real* next_;
};

// Rows of a storage type as a vector loop reads them: where they are, or converted.
template <int G, class S, class Loop = typename InLoop<S>::type>
inline Rows<const typename Loop::Raw> loop_rows(Rows<const typename S::Raw> from, int64_t n,
                                                Rows<typename S::Real> converted) {
  if constexpr (!kConverts<S>) {
    return from;
  } else {
    for (int g = 0; g < (from.stride == 0 ? 1 : G); ++g)
      S::load(from.first + g * from.stride, converted.first + g * converted.stride, n);
    return {reinterpret_cast<const typename Loop::Raw*>(converted.first), from.stride == 0 ? 0 : converted.stride};
  }
}

}  // namespace ckd::cpu::CKD_ISA
