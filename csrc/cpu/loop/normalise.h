// A normalisation and a residual in front of the neurons, and back through it: an element at a time, for the loops that
// do all at once (forward.h, backward.h), and from row to row, for those that do not.
#pragma once
#include "ckd/platform.h"
#include "cpu/memory/rows.h"

namespace ckd::cpu::CKD_ISA {

// What charges the neurons: x, or what a normalisation makes of it, or that and a residual.
enum class Source { kPlain, kNormalised, kResidual };

// Calls f(integral_constant<Source>).
template <class F>
inline void with_source(const Affine& affine, const F& f) {
  if (!affine.scale) return f(std::integral_constant<Source, Source::kPlain>{});
  if (!affine.residual) return f(std::integral_constant<Source, Source::kNormalised>{});
  f(std::integral_constant<Source, Source::kResidual>{});
}

// The values of one channel; `offset` and `slope` as LifBackward has them.
template <class Real>
struct Channel {
  Real scale, shift, mean, offset, slope;
};

// Rows of them, with a value for each element, or for each block of elements (channels.h).
template <class Real>
struct ChannelTerms {
  const Real *scale, *shift, *mean, *offset, *slope;
  CKD_FN Channel<Real> operator[](int64_t i) const { return {scale[i], shift[i], mean[i], offset[i], slope[i]}; }
};

template <Source X, class Real>
CKD_FN Real charged_by(Real x, Real residual, Real scale, Real shift) {
  if constexpr (X == Source::kPlain) return x;
  const Real normalised = x * scale + shift;
  return X == Source::kResidual ? normalised + residual : normalised;
}

// dL/dy from dL/dx and y - mean, where y's own statistics normalised it.
template <class Real>
CKD_FN Real grad_normalised(Real gx, Real centred, Real offset, Real slope, Real scale) {
  return ((gx - offset) - centred * slope) * scale;
}

template <int G, Source X, class L>
void normalise_steps(int64_t n, Rows<const typename L::Raw> y, const typename L::Real* __restrict scale,
                     const typename L::Real* __restrict shift, Rows<const typename L::Raw> residual,
                     Rows<typename L::Real> x) {
  using Real = typename L::Real;
  const typename L::Raw* __restrict from = y.first;
  const typename L::Raw* __restrict other = residual.first;
  Real* __restrict to = x.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const Real added = X == Source::kResidual ? L::get(other[g * residual.stride + i]) : Real(0);
      to[g * x.stride + i] = charged_by<X>(L::get(from[g * y.stride + i]), added, scale[i], shift[i]);
    }
  }
}

// sum += gx and moment += gx*(y - mean), the last step first.
template <int G, class L>
void reduce_steps(int64_t n, Rows<const typename L::Real> gx, Rows<const typename L::Raw> y,
                  const typename L::Real* __restrict mean, typename L::Real* __restrict sum,
                  typename L::Real* __restrict moment) {
  using Real = typename L::Real;
  const Real* __restrict gradient = gx.first;
  const typename L::Raw* __restrict from = y.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    Real s = sum[i], m = moment[i];
#pragma GCC unroll 4
    for (int g = G - 1; g >= 0; --g) {
      const Real value = gradient[g * gx.stride + i];
      s = s + value;
      m = m + value * (L::get(from[g * y.stride + i]) - mean[i]);
    }
    sum[i] = s;
    moment[i] = m;
  }
}

// dL/dy from dL/dx; with Batch, y's own statistics normalised it.
template <int G, bool Batch, class L>
void apply_steps(int64_t n, Rows<const typename L::Real> gx, Rows<const typename L::Raw> y,
                 ChannelTerms<typename L::Real> terms, Rows<typename L::Raw> gy) {
  using Real = typename L::Real;
  const Real* __restrict gradient = gx.first;
  const typename L::Raw* __restrict from = y.first;
  typename L::Raw* __restrict to = gy.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const Real value = gradient[g * gx.stride + i];
      if constexpr (Batch) {
        const Real centred = L::get(from[g * y.stride + i]) - terms.mean[i];
        to[g * gy.stride + i] =
            L::put(grad_normalised(value, centred, terms.offset[i], terms.slope[i], terms.scale[i]));
      } else {
        to[g * gy.stride + i] = L::put(value * terms.scale[i]);
      }
    }
  }
}

}  // namespace ckd::cpu::CKD_ISA
