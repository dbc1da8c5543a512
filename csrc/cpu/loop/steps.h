// A few time steps of a tile at once: the state stays in registers from step to step, and the rows of
// all steps are read side by side, which is what the hardware's prefetchers can follow.
// Every loop over elements is a vector loop; the choices are template arguments.
#pragma once
#include "ckd/neuron.h"
#include "cpu/memory/rows.h"

namespace ckd::cpu::CKD_ISA {

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

}  // namespace ckd::cpu::CKD_ISA
