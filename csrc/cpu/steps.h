// A few time steps of a tile at once: the state stays in registers from step to step, and the rows of
// all steps are read side by side, which is what the hardware's prefetchers can follow.
// Every loop over elements is a vector loop; the choices are template arguments.
#pragma once
#include <type_traits>

#include "ckd/neuron.h"
#include "storage.h"

namespace ckd::cpu::CKD_ISA {

inline constexpr int kGroup = 4;  // time steps at once; what is left over runs as 2 and 1

// Rows of consecutive time steps: element i of step g is at first[g*stride + i].
template <class T>
struct Rows {
  T* first;
  int64_t stride;
  Rows from(int64_t i) const { return {first + i, stride}; }
};

// A pair of elements in each of G rows of bfloat16.
template <int G>
CKD_FN void get_pairs(Rows<const uint16_t> rows, int64_t i, float (&x)[2][G]) {
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    const uint32_t pair = BFloat16::pairs(rows.first + g * rows.stride)[i];
    x[0][g] = BFloat16::first(pair), x[1][g] = BFloat16::second(pair);
  }
}

template <int G>
CKD_FN void put_pairs(const float (&x)[2][G], Rows<uint16_t> rows, int64_t i) {
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) BFloat16::pairs(rows.first + g * rows.stride)[i] = BFloat16::put(x[0][g], x[1][g]);
}

// The state before and after a group of steps; the two may be one row.
template <class Real>
struct State {
  const Real* before;
  Real* after;
};

// Advances v by G steps and writes their spikes; with Count, adds them to `count`.
template <int G, Charge C, Reset R, bool Count, class In, class Out>
void forward_steps(const Constants<typename In::Real> k, int64_t n, Rows<const typename In::Raw> x,
                   const typename In::Real* __restrict leak, State<typename In::Real> v, Rows<typename Out::Raw> spikes,
                   uint32_t* __restrict count) {
  using Real = typename In::Real;
  const typename In::Raw* __restrict from = x.first;
  typename Out::Raw* __restrict to = spikes.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    Real state = v.before[i];
    uint32_t fired = 0;
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const Real h = potential<C, R>(state, In::get(from[g * x.stride + i]), leak[i], k);
      to[g * spikes.stride + i] = h >= k.fire_level ? Out::kOne : typename Out::Raw(0);
      if constexpr (Count) fired += h >= k.fire_level ? 1u : 0u;
      state = after_reset<R>(h, k);
    }
    v.after[i] = state;
    if constexpr (Count) count[i] += fired;
  }
}

// The same as forward_steps, keeping h instead of spikes.
template <int G, Charge C, Reset R, class In>
void recompute_steps(const Constants<typename In::Real> k, int64_t n, Rows<const typename In::Raw> x,
                     const typename In::Real* __restrict leak, State<typename In::Real> v,
                     Rows<typename In::Real> potentials) {
  using Real = typename In::Real;
  const typename In::Raw* __restrict from = x.first;
  Real* __restrict to = potentials.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    Real state = v.before[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const Real h = potential<C, R>(state, In::get(from[g * x.stride + i]), leak[i], k);
      to[g * potentials.stride + i] = h;
      state = after_reset<R>(h, k);
    }
    v.after[i] = state;
  }
}

// The same, keeping the state alone.
template <int G, Charge C, Reset R, class In>
void advance_steps(const Constants<typename In::Real> k, int64_t n, Rows<const typename In::Raw> x,
                   const typename In::Real* __restrict leak, State<typename In::Real> v) {
  const typename In::Raw* __restrict from = x.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    typename In::Real state = v.before[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      state = after_reset<R>(potential<C, R>(state, In::get(from[g * x.stride + i]), leak[i], k), k);
    }
    v.after[i] = state;
  }
}

// sg(h - threshold).
template <class S, class Real>
void surrogate_row(const Constants<Real> k, int64_t n, const Real* __restrict h, Real* __restrict sg) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) sg[i] = S::derivative(h[i] - k.threshold, k.c0, k.c1);
}

// What the way back carries from step to step, and its constants; a row each.
template <class Real>
struct Carry {
  Real* gv;          // dL/dv[t]
  Real* pending;     // what dL/ds[t] loses to the delayed reset of step t+1
  const Real* keep;  // dL/dv[t-1] over gh[t]
};

// G steps back: gh from dL/ds and the carry.
template <int G, Reset R, bool Delayed, class Real>
void backward_steps(const Constants<Real> k, int64_t n, Rows<const Real> h, Rows<const Real> sg, Rows<const Real> gs,
                    Carry<Real> carry, Rows<Real> gh) {
  const Real* __restrict potentials = h.first;
  const Real* __restrict slopes = sg.first;
  const Real* __restrict from = gs.first;
  const Real* __restrict keep = carry.keep;
  Real* __restrict to = gh.first;
  Real* __restrict gv_row = carry.gv;
  Real* __restrict pending_row = carry.pending;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    Real gv = gv_row[i], pending = 0;
    if constexpr (Delayed) pending = pending_row[i];
#pragma GCC unroll 4
    for (int g = G - 1; g >= 0; --g) {
      Real grad_spike = from[g * gs.stride + i];
      if constexpr (Delayed) grad_spike = grad_spike - pending;
      const Real grad_h = fire_backward<R>(potentials[g * h.stride + i], grad_spike, gv, slopes[g * sg.stride + i], k);
      if constexpr (Delayed) pending = grad_h * k.drop_later;
      to[g * gh.stride + i] = grad_h;
      gv = grad_h * keep[i];
    }
    gv_row[i] = gv;
    if constexpr (Delayed) pending_row[i] = pending;
  }
}

// sum += the elementwise gradient of the leak; `before` is v[t-1].
template <Charge C, class Real>
void leak_row(const Constants<Real> k, int64_t n, const Real* __restrict gh, const Real* __restrict before,
              const Real* __restrict x, const Real* __restrict leak, Real* __restrict sum) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) sum[i] += grad_leak<C>(gh[i], before[i], x[i], leak[i], k.rest);
}

template <Reset R, class Real>
void reset_row(const Constants<Real> k, int64_t n, const Real* __restrict h, Real* __restrict v) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) v[i] = after_reset<R>(h[i], k);
}

// Whether so many steps are one group.
inline bool is_one_group(int64_t steps) { return steps == kGroup || steps == 2 || steps == 1; }

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
inline void in_groups_back(int64_t first, int64_t last, const F& f) {
  const int64_t left_over = (last - first) % kGroup;
  if (left_over & 1) f(last - 1, std::integral_constant<int, 1>{});
  if (left_over & 2) f(last - left_over, std::integral_constant<int, 2>{});
  for (int64_t t = last - left_over - kGroup; t >= first; t -= kGroup) f(t, std::integral_constant<int, kGroup>{});
}

}  // namespace ckd::cpu::CKD_ISA
