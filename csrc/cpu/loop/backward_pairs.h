// The way back (fused.h) through a few steps of rows of bfloat16, in pairs.
#pragma once
#include "ckd/usual.h"
#include "cpu/loop/backward.h"
#include "cpu/loop/pairs.h"

namespace ckd::cpu::CKD_ISA {

// What a group of steps is part of: a whole sequence from rest, to which nothing comes back; one whose map has a
// gradient, which joins that of every step; or a longer or started one, whose other steps have a state.
enum class Part { kWhole, kWholeWithMap, kOfMany };

struct PairRows {
  Rows<const uint16_t> x, gs;
  Rows<uint16_t> gx;
  float leak;             // of a whole sequence
  const float* from_map;  // likewise, what comes from the map's gradient to every step of an element
  // Of a part of many: leaks, v before the first step, and dL/dv after the last, which becomes that before the first.
  Halves<const float> leaks, v;
  Halves<float> gv;
};

template <int G, Charge C, Reset R, class Surrogate, Part P>
void fused_pairs(const Constants<float> k, int64_t n, const PairRows& given) {
  using L = BFloat16;
  const PairRows rows = given;  // which no store can change
  const auto element = [&](int64_t i, int j, const float (&x)[G], float (&gs)[G], float (&gx)[G])
                           __attribute__((always_inline)) {
                             const int64_t at = j * rows.gv.half + i;
                             float leak = rows.leak, v = k.rest, gv = 0;
                             if constexpr (P == Part::kOfMany)
                               leak = rows.leaks.first[at], v = rows.v.first[at], gv = rows.gv.first[at];
                             if constexpr (P == Part::kWholeWithMap) {
#pragma GCC unroll 4
                               for (int g = 0; g < G; ++g) gs[g] = gs[g] + rows.from_map[2 * i + j];
                             }
                             element_back<G, C, R, Surrogate>(k, leak, v, x, gs, gv, gx);
                             if constexpr (P == Part::kOfMany) rows.gv.first[at] = gv;
                           };
  CKD_SIMD
  for (int64_t i = 0; i < n / 2; ++i) {
    float x[2][G], gs[2][G], gx[2][G];
    get_pairs(rows.x, i, x);
    get_pairs(rows.gs, i, gs);
    element(i, 0, x[0], gs[0], gx[0]);
    element(i, 1, x[1], gs[1], gx[1]);
    put_pairs(gx, rows.gx, i);
  }
  if (n % 2 == 0) return;
  float x[G], gs[G], gx[G];
  for (int g = 0; g < G; ++g) {
    x[g] = L::get(rows.x.first[g * rows.x.stride + n - 1]);
    gs[g] = L::get(rows.gs.first[g * rows.gs.stride + n - 1]);
  }
  element(n / 2, 0, x, gs, gx);
  for (int g = 0; g < G; ++g) rows.gx.first[g * rows.gx.stride + n - 1] = L::put(gx[g]);
}

// For the usual neurons. Chosen once a call; compiled in a file of its own.
struct FusedPairs {
  ByGroup<decltype(&fused_pairs<1, Charge::kDecay, Reset::kHard, Triangle, Part::kWhole>)> steps;
  Constants<float> k;

  FusedPairs(const Neuron& neuron, Part part);
};

}  // namespace ckd::cpu::CKD_ISA
