// What the forward and the backward pass of a tile share: where its rows lie, and how they are filled.
#pragma once
#include "rows.h"
#include "steps.h"

namespace ckd::cpu::CKD_ISA {

// Where a row of a tile lies in the tensors of a call.
struct Address {
  int64_t frame, steps, x_steps;
  explicit Address(const Shape& s) : frame(s.frame()), steps(s.steps), x_steps(s.repeated ? 1 : s.steps) {}
  int64_t state(int64_t outer, int64_t begin) const { return outer * frame + begin; }
  int64_t step(int64_t outer, int64_t t, int64_t begin) const { return (outer * steps + t) * frame + begin; }
  int64_t x(int64_t outer, int64_t t, int64_t begin) const {
    return (outer * x_steps + (x_steps == 1 ? 0 : t)) * frame + begin;
  }
};

// The row of a leak that all channels share.
template <class Call, class Real>
inline void fill_leak(const Call& call, Real* row) {
  const Real* value = static_cast<const Real*>(call.leak);
  fill_row(value ? *value : Real(call.neuron.leak), kTile, row);
}

template <class Real>
inline void load_state(const void* from, int64_t at, Real rest, int64_t n, Real* v) {
  if (from) {
    std::memcpy(v, static_cast<const Real*>(from) + at, n * sizeof(Real));
  } else {
    fill_row(rest, n, v);
  }
}

// G rows of x from step t on, converted where a vector loop cannot.
template <int G, class S, class Loop = typename InLoop<S>::type>
inline Rows<const typename Loop::Raw> input_rows(const typename S::Raw* x, const Address& at, bool repeated,
                                                 int64_t outer, int64_t t, int64_t begin, int64_t n,
                                                 typename S::Real* converted) {
  const typename S::Raw* row = x + at.x(outer, t, begin);
  const int64_t stride = repeated ? 0 : at.frame;
  if constexpr (!kConverts<S>) {
    return {row, stride};
  } else {
    const int rows = repeated ? 1 : G;
    for (int g = 0; g < rows; ++g) S::load(row + g * stride, converted + g * n, n);
    return {reinterpret_cast<const typename Loop::Raw*>(converted), repeated ? 0 : n};
  }
}

}  // namespace ckd::cpu::CKD_ISA
