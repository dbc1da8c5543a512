// A whole sequence of a few time steps from rest, in one loop that keeps everything in registers: normalise, add a
// residual, charge, fire. Most calls are one; the others go through rows of state (steps.h) and give the same bits.
#pragma once
#include "cpu/loop/select.h"

namespace ckd::cpu::CKD_ISA {

// What charges the neurons: x, or what a normalisation makes of it, or that and a residual.
enum class Source { kPlain, kNormalised, kResidual };

// What a sequence is given; scale and shift have a value for each element.
template <class S>
struct WholeRows {
  Rows<const typename S::Raw> x, residual;
  const typename S::Real *scale, *shift;
  typename S::Real leak;
  Rows<typename S::Raw> spikes;
  uint32_t* count;  // becomes how often each element fires, where that is counted

  // From element i on, where all of it is given.
  WholeRows from(int64_t i) const {
    return {x.from(i), residual.first ? residual.from(i) : residual, scale + i, shift + i, leak, spikes.from(i),
            count + i};
  }
};

template <Source X, class Real>
CKD_FN Real charged_by(Real x, Real residual, Real scale, Real shift) {
  if constexpr (X == Source::kPlain) return x;
  const Real normalised = x * scale + shift;
  return X == Source::kResidual ? normalised + residual : normalised;
}

// The potentials of one element.
template <int G, Charge C, Reset R, class Real>
CKD_FN void element_forward(const Constants<Real>& k, Real leak, const Real (&x)[G], Real (&h)[G]) {
  Real v = k.rest;
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    h[g] = potential<C, R>(v, x[g], leak, k);
    v = after_reset<R>(h[g], k);
  }
}

template <int G, Charge C, Reset R, bool Count, Source X, class S>
void whole_steps(const Constants<typename S::Real> k, int64_t n, const WholeRows<S>& given) {
  const WholeRows<S> rows = given;  // which no store can change
  using Real = typename S::Real;
  const typename S::Raw* __restrict from = rows.x.first;
  const typename S::Raw* __restrict other = rows.residual.first;
  const Real* __restrict scale = rows.scale;
  const Real* __restrict shift = rows.shift;
  typename S::Raw* __restrict to = rows.spikes.first;
  uint32_t* __restrict count = rows.count;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    Real x[G];
    Real h[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const Real residual = X == Source::kResidual ? S::get(other[g * rows.residual.stride + i]) : Real(0);
      const Real a = X == Source::kPlain ? Real(0) : scale[i], b = X == Source::kPlain ? Real(0) : shift[i];
      x[g] = charged_by<X>(S::get(from[g * rows.x.stride + i]), residual, a, b);
    }
    element_forward<G, C, R>(k, rows.leak, x, h);
    uint32_t fired = 0;
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      to[g * rows.spikes.stride + i] = h[g] >= k.fire_level ? S::kOne : typename S::Raw(0);
      fired += h[g] >= k.fire_level ? 1u : 0u;
    }
    if constexpr (Count) count[i] = fired;
  }
}

// The same of rows of bfloat16, two elements at a time.
template <int G, Charge C, Reset R, bool Count, Source X>
void whole_pairs(const Constants<float> k, int64_t n, const WholeRows<BFloat16>& given) {
  const WholeRows<BFloat16> rows = given;
  using L = BFloat16;
  const float* __restrict scale = rows.scale;
  const float* __restrict shift = rows.shift;
  uint32_t* __restrict count = rows.count;
  CKD_SIMD
  for (int64_t i = 0; i < n / 2; ++i) {
    float x[2][G], residual[2][G] = {}, h[2][G];
    get_pairs(rows.x, i, x);
    if constexpr (X == Source::kResidual) get_pairs(rows.residual, i, residual);
    if constexpr (X != Source::kPlain) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        x[0][g] = charged_by<X>(x[0][g], residual[0][g], scale[2 * i], shift[2 * i]);
        x[1][g] = charged_by<X>(x[1][g], residual[1][g], scale[2 * i + 1], shift[2 * i + 1]);
      }
    }
    element_forward<G, C, R>(k, rows.leak, x[0], h[0]);
    element_forward<G, C, R>(k, rows.leak, x[1], h[1]);
    uint32_t fired[2] = {};
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const uint32_t first = h[0][g] >= k.fire_level ? L::kOne : 0u,
                     second = h[1][g] >= k.fire_level ? uint32_t(L::kOne) << 16 : 0u;
      L::pairs(rows.spikes.first + g * rows.spikes.stride)[i] = first | second;
      fired[0] += h[0][g] >= k.fire_level ? 1u : 0u, fired[1] += h[1][g] >= k.fire_level ? 1u : 0u;
    }
    if constexpr (Count) count[2 * i] = fired[0], count[2 * i + 1] = fired[1];
  }
  if (n % 2 != 0) whole_steps<G, C, R, Count, X>(k, 1, rows.from(n - 1));
}

// Which storage types have such loops: those that networks train with on a CPU.
template <class S>
inline constexpr bool kHasWholeSteps =
#ifdef CKD_FUSED
    std::is_same_v<S, Float32> || std::is_same_v<S, BFloat16>;
#else
    false;
#endif

// Chosen once a call.
template <class S>
struct WholeSteps {
  using Function = void (*)(Constants<typename S::Real>, int64_t, const WholeRows<S>&);
  ByGroup<Function> steps;

  WholeSteps(const Neuron& neuron, bool count, Source source) {
    with_charge_and_reset(neuron, [&](auto charge, auto reset) {
      constexpr Charge C = decltype(charge)::value;
      constexpr Reset R = decltype(reset)::value;
      const auto choose = [&](auto x) {
        constexpr Source X = decltype(x)::value;
        if (count) {
          steps = {function<4, C, R, true, X>(), function<2, C, R, true, X>(), function<1, C, R, true, X>()};
        } else {
          steps = {function<4, C, R, false, X>(), function<2, C, R, false, X>(), function<1, C, R, false, X>()};
        }
      };
      switch (source) {
        case Source::kPlain:
          return choose(std::integral_constant<Source, Source::kPlain>{});
        case Source::kNormalised:
          return choose(std::integral_constant<Source, Source::kNormalised>{});
        case Source::kResidual:
          return choose(std::integral_constant<Source, Source::kResidual>{});
      }
    });
  }

 private:
  template <int G, Charge C, Reset R, bool Count, Source X>
  static Function function() {
    if constexpr (std::is_same_v<S, BFloat16>) {
      return whole_pairs<G, C, R, Count, X>;
    } else {
      return whole_steps<G, C, R, Count, X, S>;
    }
  }
};

}  // namespace ckd::cpu::CKD_ISA
