// A few steps of a normalisation, forward and backward, from row to row.
#pragma once
#include "cpu/memory/rows.h"

namespace ckd::cpu::CKD_ISA {

template <int G, bool Residual, class L>
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
      const Real normalised = L::get(from[g * y.stride + i]) * scale[i] + shift[i];
      if constexpr (Residual) {
        to[g * x.stride + i] = normalised + L::get(other[g * residual.stride + i]);
      } else {
        to[g * x.stride + i] = normalised;
      }
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

// A row each of what a channel has.
template <class Real>
struct BatchTerms {
  const Real *mean, *offset, *slope, *scale;
};

// dL/dy from dL/dx; with Batch, y's own statistics normalised it.
template <int G, bool Batch, class L>
void apply_steps(int64_t n, Rows<const typename L::Real> gx, Rows<const typename L::Raw> y,
                 BatchTerms<typename L::Real> terms, Rows<typename L::Raw> gy) {
  using Real = typename L::Real;
  const Real* __restrict gradient = gx.first;
  const typename L::Raw* __restrict from = y.first;
  typename L::Raw* __restrict to = gy.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      Real value = gradient[g * gx.stride + i];
      if constexpr (Batch) {
        const Real centred = L::get(from[g * y.stride + i]) - terms.mean[i];
        value = (value - terms.offset[i]) - centred * terms.slope[i];
      }
      to[g * gy.stride + i] = L::put(value * terms.scale[i]);
    }
  }
}

}  // namespace ckd::cpu::CKD_ISA
