// The way back through a few steps in one loop that keeps everything in registers: recompute, surrogate and
// gradient. Most training steps are made of these calls, and at the speed of memory only such a loop keeps up;
// calls that ask for more go through rows of temporaries (wide.h) and give the same bits.
#pragma once
#include "cpu/loop/select.h"

namespace ckd::cpu::CKD_ISA {

// What a group of steps is given; what is not of float is converted on the way (input.h, upstream.h, grad_input.h).
struct FusedRows {
  Rows<const float> x, gs;
  Rows<float> gx;
  const float* leak;
  const float* v;  // v before the first step
  float* gv;       // dL/dv after the last step; becomes dL/dv before the first
};

// The way back through G steps of one element: v is what it was before the first of them; gv, dL/dv after the last,
// becomes dL/dv before the first.
template <int G, Charge C, Reset R, class Surrogate>
CKD_FN void element_back(const Constants<float>& k, float leak, float v, const float (&x)[G], const float (&gs)[G],
                         float& gv, float (&gx)[G]) {
  float h[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    h[g] = potential<C, R>(v, x[g], leak, k);
    v = after_reset<R>(h[g], k);
  }
#pragma GCC unroll 4
  for (int g = G - 1; g >= 0; --g) {
    const float sg = Surrogate::derivative(h[g] - k.threshold, k.c0, k.c1);
    const float gh = fire_backward<R>(h[g], gs[g], gv, sg, k);
    gx[g] = grad_input<C>(gh, leak);
    gv = grad_before<C>(gh, leak);
  }
}

template <int G, Charge C, Reset R, class Surrogate>
void fused_steps(const Constants<float> k, int64_t n, FusedRows rows) {
  const float* __restrict x_rows = rows.x.first;
  const float* __restrict gs_rows = rows.gs.first;
  float* __restrict gx_rows = rows.gx.first;
  const float* __restrict leak = rows.leak;
  const float* __restrict v = rows.v;
  float* __restrict gv_row = rows.gv;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    float x[G], gs[G], gx[G], gv = gv_row[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      x[g] = x_rows[g * rows.x.stride + i];
      gs[g] = gs_rows[g * rows.gs.stride + i];
    }
    element_back<G, C, R, Surrogate>(k, leak[i], v[i], x, gs, gv, gx);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) gx_rows[g * rows.gx.stride + i] = gx[g];
    gv_row[i] = gv;
  }
}

// For every neuron. Chosen once a call; compiled in a file of its own.
struct FusedSteps {
  ByGroup<decltype(&fused_steps<1, Charge::kDecay, Reset::kHard, Triangle>)> steps;
  Constants<float> k;

  explicit FusedSteps(const Neuron& neuron);
};

}  // namespace ckd::cpu::CKD_ISA
