// The general path backward: from row to row of temporaries, for every call, and with what the gradients of a leak and
// of a delayed reset ask for.
#pragma once
#include "cpu/loop/forward.h"

namespace ckd::cpu::CKD_ISA {

// sg(h - threshold).
template <class S, class Real>
void surrogate_row(const Constants<Real> k, int64_t n, const Real* __restrict h, Real* __restrict sg) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) sg[i] = S::derivative(h[i] - k.threshold, k.c0, k.c1);
}

// What is carried from step to step, and its constants; a row each.
template <class Real>
struct GradientRows {
  Real* gv;          // dL/dv[t]
  Real* pending;     // what dL/ds[t] loses to the delayed reset of step t+1
  const Real* keep;  // dL/dv[t-1] over gh[t]
};

// G steps back: gh from dL/ds and what is carried.
template <int G, Reset R, bool Delayed, class Real>
void general_steps(const Constants<Real> k, int64_t n, Rows<const Real> h, Rows<const Real> sg, Rows<const Real> gs,
                   GradientRows<Real> carry, Rows<Real> gh) {
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

// `In`: the arithmetic's type, as a storage type.
template <class In>
struct GeneralLoops {
  using Real = typename In::Real;
  ByGroup<ForwardLoop<In, In>> recompute;
  ByGroup<decltype(&general_steps<1, Reset::kHard, false, Real>)> backward;
  decltype(&leak_row<Charge::kDecay, Real>) leak;
  decltype(&reset_row<Reset::kHard, Real>) reset;
  decltype(&surrogate_row<Triangle, Real>) surrogate;

  explicit GeneralLoops(const Neuron& neuron)
      : recompute(forward_loops<Single<In>, Source::kPlain, Start::kState, Keep::kPotentials, In>(neuron)) {
    with_charge_and_reset(neuron, [&](auto c, auto r) {
      constexpr Reset R = decltype(r)::value;
      leak = leak_row<decltype(c)::value, Real>;
      reset = reset_row<R, Real>;
      backward = by_group([](auto g) { return general_steps<decltype(g)::value, R, false, Real>; });
      if constexpr (R == Reset::kSubtract) {
        if (!is_delayed(neuron)) return;
        backward = by_group([](auto g) { return general_steps<decltype(g)::value, R, true, Real>; });
      }
    });
    with_surrogate(neuron.surrogate, [&](auto s) { surrogate = surrogate_row<decltype(s), Real>; });
  }
};

}  // namespace ckd::cpu::CKD_ISA
