// The way back through a few steps in one loop that keeps everything in registers: recompute, surrogate and
// gradient. Most training steps are made of these calls, and at the speed of memory only such a loop keeps up;
// calls that ask for more go through rows of temporaries (wide.h) and give the same bits.
#pragma once
#include "choose.h"

namespace ckd::cpu::CKD_ISA {

// What a group of steps is given, as it is stored (L is Float32 or BFloat16), or converted on the way (input.h,
// upstream.h, grad_input.h).
template <class L>
struct FusedRows {
  Rows<const typename L::Raw> x, gs;
  Rows<typename L::Raw> gx;
  const float* leak;
  const float* v;  // v before the first step
  float* gv;       // dL/dv after the last step; becomes dL/dv before the first
};

// The way back through G steps of one element: v is what it was before the first of them; gv, dL/dv after the last,
// becomes dL/dv before the first. `back` is k, with drop_now = 0 where the reset is detached: gv*(1 - sg*0) is gv.
template <int G, Charge C, Through T, class Surrogate>
CKD_FN void element_back(const Constants<float>& k, const Constants<float>& back, float leak, float v,
                         const float (&x)[G], const float (&gs)[G], float& gv, float (&gx)[G]) {
  constexpr Reset R = T == Through::kSubtract ? Reset::kSubtract : Reset::kHard;
  float h[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    h[g] = potential<C, R>(v, x[g], leak, k);
    v = after_reset<R>(h[g], k);
  }
#pragma GCC unroll 4
  for (int g = G - 1; g >= 0; --g) {
    const float sg = Surrogate::derivative(h[g] - k.threshold, k.c0, k.c1);
    const float gh = fire_backward<T>(h[g], gs[g], gv, sg, back);
    gx[g] = grad_input<C>(gh, leak);
    gv = grad_before<C>(gh, leak);
  }
}

template <int G, Charge C, Through T, class Surrogate, class L>
void fused_steps(const Constants<float> k, const Constants<float> back, int64_t n, FusedRows<L> rows) {
  const typename L::Raw* __restrict x_rows = rows.x.first;
  const typename L::Raw* __restrict gs_rows = rows.gs.first;
  typename L::Raw* __restrict gx_rows = rows.gx.first;
  const float* __restrict leak = rows.leak;
  const float* __restrict v = rows.v;
  float* __restrict gv_row = rows.gv;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    float x[G], gs[G], gx[G], gv = gv_row[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      x[g] = L::get(x_rows[g * rows.x.stride + i]);
      gs[g] = L::get(gs_rows[g * rows.gs.stride + i]);
    }
    element_back<G, C, T, Surrogate>(k, back, leak[i], v[i], x, gs, gv, gx);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) gx_rows[g * rows.gx.stride + i] = L::put(gx[g]);
    gv_row[i] = gv;
  }
}

// The same of whole sequences from rest that nothing comes back to, in rows of bfloat16, two elements at a time; with
// Map, what comes from a map's gradient joins every step's.
template <int G, Charge C, Through T, class Surrogate, bool Map>
void fused_pairs(const Constants<float> k, const Constants<float> back, int64_t n, float leak,
                 Rows<const uint16_t> x_rows, Rows<const uint16_t> gs_rows, const float* __restrict from_map,
                 Rows<uint16_t> gx_rows) {
  using L = BFloat16;
  CKD_SIMD
  for (int64_t i = 0; i < n / 2; ++i) {
    float x[2][G], gs[2][G], gx[2][G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const uint32_t xs = L::pairs(x_rows.first + g * x_rows.stride)[i];
      const uint32_t gss = L::pairs(gs_rows.first + g * gs_rows.stride)[i];
      x[0][g] = L::first(xs), x[1][g] = L::second(xs);
      gs[0][g] = L::first(gss), gs[1][g] = L::second(gss);
      if constexpr (Map) gs[0][g] = gs[0][g] + from_map[2 * i], gs[1][g] = gs[1][g] + from_map[2 * i + 1];
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      float gv = 0;
      element_back<G, C, T, Surrogate>(k, back, leak, k.rest, x[j], gs[j], gv, gx[j]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      L::pairs(gx_rows.first + g * gx_rows.stride)[i] = L::put(gx[0][g], gx[1][g]);
    }
  }
  if (n % 2 != 0) {
    float x[G], gs[G], gx[G], gv = 0;
    for (int g = 0; g < G; ++g) {
      x[g] = L::get(x_rows.first[g * x_rows.stride + n - 1]);
      gs[g] = L::get(gs_rows.first[g * gs_rows.stride + n - 1]);
      if constexpr (Map) gs[g] = gs[g] + from_map[n - 1];
    }
    element_back<G, C, T, Surrogate>(k, back, leak, k.rest, x, gs, gv, gx);
    for (int g = 0; g < G; ++g) gx_rows.first[g * gx_rows.stride + n - 1] = L::put(gx[g]);
  }
}

template <class L>
struct FusedSteps {
  ByGroup<decltype(&fused_steps<1, Charge::kDecay, Through::kHard, Triangle, L>)> steps;
  // Of rows of bfloat16 that are a whole sequence.
  ByGroup<decltype(&fused_pairs<1, Charge::kDecay, Through::kHard, Triangle, false>)> pairs;
  decltype(&fused_pairs<4, Charge::kDecay, Through::kHard, Triangle, true>) four_with_map = nullptr;
  Constants<float> k, back;

  explicit FusedSteps(const Neuron& neuron);
};

template <class L>
FusedSteps<L>::FusedSteps(const Neuron& neuron) : k(neuron), back(neuron) {
  if (neuron.detach_reset) back.drop_now = 0;
  const auto choose = [&](auto charge, auto through) {
    constexpr Charge C = decltype(charge)::value;
    constexpr Through T = decltype(through)::value;
    with_surrogate(neuron.surrogate, [&](auto surrogate) {
      using G = decltype(surrogate);
      steps = {fused_steps<4, C, T, G, L>, fused_steps<2, C, T, G, L>, fused_steps<1, C, T, G, L>};
      if constexpr (std::is_same_v<L, BFloat16>) {
        pairs = {fused_pairs<4, C, T, G, false>, fused_pairs<2, C, T, G, false>, fused_pairs<1, C, T, G, false>};
        four_with_map = fused_pairs<4, C, T, G, true>;
      }
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
