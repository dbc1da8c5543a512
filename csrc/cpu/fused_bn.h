// The way back through four steps behind a normalisation, in one loop that keeps everything in registers: normalise,
// recompute, surrogate, gradient, and what either pass makes of it. It serves neurons that decay, which most are, and
// gives the bits of the steps one by one (fused.h, grad_input.h).
#pragma once
#include "choose.h"
#include "grad_input.h"

namespace ckd::cpu::CKD_ISA {

// What a group of steps is given, as it is stored; a channel's values in rows, one for each element.
template <class L>
struct FusedBnRows {
  Rows<const typename L::Raw> y, residual, gs;
  const float* shift;
  BatchTerms<float> terms;
  const float* leak;
  const float* v;   // v before the first step
  State<float> gv;  // dL/dv after the last step, and before the first
  // Of the pass that sums, without and with these steps:
  State<float> sum, moment;
  // Of the pass that applies:
  Rows<typename L::Raw> gy, grad_residual;
};

// `back` is as in fused_steps. With Sums, the pass that sums, else the one that applies.
template <Through T, class Surrogate, bool Sums, bool Residual, class L>
void fused_bn_steps(const Constants<float> k, const Constants<float> back, int64_t n, const FusedBnRows<L> rows) {
  constexpr Reset R = T == Through::kSubtract ? Reset::kSubtract : Reset::kHard;
  constexpr Charge C = Charge::kDecay;
  constexpr int G = kGroup;
  constexpr int64_t kBlock = 64;  // elements between prefetches
  const typename L::Raw* __restrict y_rows = rows.y.first;
  const typename L::Raw* __restrict residual_rows = rows.residual.first;
  const typename L::Raw* __restrict gs_rows = rows.gs.first;
  typename L::Raw* __restrict gy_rows = rows.gy.first;
  typename L::Raw* __restrict grad_residual_rows = rows.grad_residual.first;
  const float* __restrict scale = rows.terms.scale;
  const float* __restrict shift = rows.shift;
  const float* __restrict mean = rows.terms.mean;
  const float* __restrict offset = rows.terms.offset;
  const float* __restrict slope = rows.terms.slope;
  const float* __restrict leak_row = rows.leak;
  const float* __restrict v_row = rows.v;
  const State<float> carry = rows.gv, sum = rows.sum, moment = rows.moment;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    for (int64_t i = begin; i < begin + kBlock; i += 64 / sizeof(typename L::Raw)) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        prefetch(y_rows + g * rows.y.stride + i);
        prefetch(gs_rows + g * rows.gs.stride + i);
        if constexpr (Residual) prefetch(residual_rows + g * rows.residual.stride + i);
      }
    }
    const int64_t end = std::min(n, begin + kBlock);
    CKD_SIMD
    for (int64_t i = begin; i < end; ++i) {
      const float leak = leak_row[i];
      float y[G], h[G], gs[G];
      float v = v_row[i];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        y[g] = L::get(y_rows[g * rows.y.stride + i]);
        gs[g] = L::get(gs_rows[g * rows.gs.stride + i]);
        float x = y[g] * scale[i] + shift[i];
        if constexpr (Residual) x = x + L::get(residual_rows[g * rows.residual.stride + i]);
        h[g] = potential<C, R>(v, x, leak, k);
        v = after_reset<R>(h[g], k);
      }
      float gv = carry.before[i], s = 0, m = 0;
      if constexpr (Sums) s = sum.before[i], m = moment.before[i];
#pragma GCC unroll 4
      for (int g = G - 1; g >= 0; --g) {
        const float sg = Surrogate::derivative(h[g] - k.threshold, k.c0, k.c1);
        const float gx = fire_backward<T>(h[g], gs[g], gv, sg, back);
        gv = grad_before<C>(gx, leak);
        const float centred = y[g] - mean[i];
        if constexpr (Sums) {
          s = s + gx;
          m = m + gx * centred;
        } else {
          gy_rows[g * rows.gy.stride + i] = L::put(((gx - offset[i]) - centred * slope[i]) * scale[i]);
          if constexpr (Residual) grad_residual_rows[g * rows.grad_residual.stride + i] = L::put(gx);
        }
      }
      carry.after[i] = gv;
      if constexpr (Sums) sum.after[i] = s, moment.after[i] = m;
    }
  }
}

template <class L>
struct FusedBnSteps {
  decltype(&fused_bn_steps<Through::kHard, Triangle, true, false, L>) four = nullptr;

  // None where a call asks for more than the loop does.
  explicit FusedBnSteps(const LifBackward& call);
};

template <class L>
FusedBnSteps<L>::FusedBnSteps(const LifBackward& call) {
  const bool residual = call.affine.residual, sums = call.sums;
  if (!call.affine.scale || !call.mean || !call.grad_spikes || call.grad_sam || call.shape.repeated ||
      call.neuron.charge != Charge::kDecay || (!sums && residual != (call.grad_residual != nullptr))) {
    return;
  }
  const auto choose = [&](auto through) {
    constexpr Through T = decltype(through)::value;
    with_surrogate(call.neuron.surrogate, [&](auto surrogate) {
      using G = decltype(surrogate);
      if (sums) {
        four = residual ? fused_bn_steps<T, G, true, true, L> : fused_bn_steps<T, G, true, false, L>;
      } else {
        four = residual ? fused_bn_steps<T, G, false, true, L> : fused_bn_steps<T, G, false, false, L>;
      }
    });
  };
  if (call.neuron.reset != Reset::kHard) {
    choose(std::integral_constant<Through, Through::kSubtract>{});
  } else if (call.neuron.detach_reset) {
    choose(std::integral_constant<Through, Through::kHardDetached>{});
  } else {
    choose(std::integral_constant<Through, Through::kHard>{});
  }
}

// Compiled in a file of its own each.
extern template struct FusedBnSteps<Float32>;
extern template struct FusedBnSteps<BFloat16>;

}  // namespace ckd::cpu::CKD_ISA
