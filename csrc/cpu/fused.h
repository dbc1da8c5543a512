// The way back through a few steps in one loop that keeps everything in registers: recompute, surrogate and
// gradient. Most training steps are made of these calls, and at the speed of memory only such a loop keeps up;
// calls that ask for more go through rows of temporaries (wide.h) and give the same bits.
#pragma once
#include <limits>

#include "choose.h"

namespace ckd::cpu::CKD_ISA {

// Makes a row of state fit for `put_tame`: no NaN but the default one, which arithmetic passes on as it is.
template <class S>
inline void tame(int64_t n, typename S::Real* __restrict row) {
  if constexpr (sizeof(typename S::Raw) == sizeof(typename S::Real)) return;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i)
    row[i] = row[i] != row[i] ? std::numeric_limits<typename S::Real>::quiet_NaN() : row[i];
}

// What a group of steps is given; the rows of v and gv are null for a sequence of one step from rest.
template <class S>
struct FusedRows {
  Rows<const typename S::Raw> x, gs;
  Rows<typename S::Raw> gx;
  const typename S::Real* v;  // v before the first step
  typename S::Real* gv;       // dL/dv after the last step; becomes dL/dv before the first
};

// `back` is k, with drop_now = 0 where the reset is detached: gv*(1 - sg*0) is gv.
template <int G, bool FromRest, Charge C, Through T, class Surrogate, class S>
void fused_steps(const Constants<typename S::Real> k, const Constants<typename S::Real> back, typename S::Real leak,
                 int64_t n, FusedRows<S> rows) {
  using Real = typename S::Real;
  constexpr Reset R = T == Through::kSubtract ? Reset::kSubtract : Reset::kHard;
  const typename S::Raw* __restrict x = rows.x.first;
  const typename S::Raw* __restrict gs = rows.gs.first;
  typename S::Raw* __restrict gx = rows.gx.first;
  const Real* __restrict v_row = rows.v;
  Real* __restrict gv_row = rows.gv;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    Real h[G];
    Real v = FromRest ? k.rest : v_row[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      h[g] = potential<C, R>(v, S::get(x[g * rows.x.stride + i]), leak, k);
      v = after_reset<R>(h[g], k);
    }
    Real gv = FromRest ? Real(0) : gv_row[i];
#pragma GCC unroll 4
    for (int g = G - 1; g >= 0; --g) {
      const Real sg = Surrogate::derivative(h[g] - k.threshold, k.c0, k.c1);
      const Real gh = fire_backward<T>(h[g], S::get(gs[g * rows.gs.stride + i]), gv, sg, back);
      gx[g * rows.gx.stride + i] = S::put_tame(grad_input<C>(gh, leak));
      gv = grad_before<C>(gh, leak);
    }
    if constexpr (!FromRest) gv_row[i] = gv;
  }
}

template <class S>
struct FusedSteps {
  using Real = typename S::Real;
  using Function = decltype(&fused_steps<1, false, Charge::kDecay, Through::kHard, Triangle, S>);
  ByGroup<Function> steps;
  Function from_rest;  // one step
  Constants<Real> k, back;
  Real leak;

  explicit FusedSteps(const Neuron& neuron);
};

template <class S>
FusedSteps<S>::FusedSteps(const Neuron& neuron) : k(neuron), back(neuron), leak(Real(neuron.leak)) {
  if (neuron.detach_reset) back.drop_now = 0;
  const auto choose = [&](auto charge, auto through) {
    constexpr Charge C = decltype(charge)::value;
    constexpr Through T = decltype(through)::value;
    with_surrogate(neuron.surrogate, [&](auto surrogate) {
      using G = decltype(surrogate);
      steps = {fused_steps<4, false, C, T, G, S>, fused_steps<2, false, C, T, G, S>, fused_steps<1, false, C, T, G, S>};
      from_rest = fused_steps<1, true, C, T, G, S>;
    });
  };
  with_charge_and_reset(neuron, [&](auto charge, auto reset) {
    if constexpr (decltype(reset)::value == Reset::kSubtract) {
      choose(charge, std::integral_constant<Through, Through::kSubtract>{});
    } else if (neuron.detach_reset) {
      choose(charge, std::integral_constant<Through, Through::kHardDetached>{});
    } else {
      choose(charge, std::integral_constant<Through, Through::kHard>{});
    }
  });
}

// Compiled in a file of its own each.
extern template struct FusedSteps<Float32>;
extern template struct FusedSteps<BFloat16>;

}  // namespace ckd::cpu::CKD_ISA
