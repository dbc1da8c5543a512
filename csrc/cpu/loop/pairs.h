// Steps of rows of bfloat16, two elements at a time, which lie in one word: no lane of a vector has to become wider or
// narrower. What a tile carries from step to step lies in halves: its even elements, then its odd ones.
#pragma once
#include "cpu/loop/select.h"

namespace ckd::cpu::CKD_ISA {

// A row in halves, the second one so many elements behind the first.
template <class T>
struct Halves {
  T* first;
  int64_t half;
  Halves from(int64_t i) const { return {first + i, half}; }  // i: of a half
  operator Halves<const T>() const { return {first, half}; }
};

// From a row of elements, whose NaN become `plain_nan`s.
inline void split_row(const float* __restrict from, int64_t n, Halves<float> to) {
  float* __restrict even = to.first;
  float* __restrict odd = to.first + to.half;
  CKD_SIMD
  for (int64_t i = 0; i < n / 2; ++i) {
    even[i] = plain_nan(from[2 * i]);
    odd[i] = plain_nan(from[2 * i + 1]);
  }
  if (n % 2 != 0) even[n / 2] = plain_nan(from[n - 1]);
}

// To a row of elements.
inline void join_row(Halves<const float> from, int64_t n, float* __restrict to) {
  const float* __restrict even = from.first;
  const float* __restrict odd = from.first + from.half;
  CKD_SIMD
  for (int64_t i = 0; i < n / 2; ++i) {
    to[2 * i] = even[i];
    to[2 * i + 1] = odd[i];
  }
  if (n % 2 != 0) to[n - 1] = even[n / 2];
}

// What a group of steps starts from, the state before and after it in one row or in two.
struct PairState {
  Halves<const float> leak, before;
  Halves<float> after;
};

// forward_steps of pairs. With Spikes, writes the spikes; with Count, adds them to `count`, element by element.
template <int G, Charge C, Reset R, bool Spikes, bool Count>
void step_pairs(const Constants<float> k, int64_t n, Rows<const uint16_t> x, PairState state, Rows<uint16_t> spikes,
                uint32_t* __restrict count) {
  using L = BFloat16;
  const auto element = [&](int64_t i, int j, const float (&xs)[G], uint32_t (&fired)[G])
                           __attribute__((always_inline)) {
                             const int64_t at = j * state.after.half + i;
                             const float leak = state.leak.first[at];
                             float v = state.before.first[at];
#pragma GCC unroll 4
                             for (int g = 0; g < G; ++g) {
                               const float h = potential<C, R>(v, xs[g], leak, k);
                               fired[g] = h >= k.fire_level ? 1u : 0u;
                               v = after_reset<R>(h, k);
                             }
                             state.after.first[at] = v;
                           };
  CKD_SIMD
  for (int64_t i = 0; i < n / 2; ++i) {
    float xs[2][G];
    uint32_t fired[2][G];
    get_pairs(x, i, xs);
    element(i, 0, xs[0], fired[0]);
    element(i, 1, xs[1], fired[1]);
    uint32_t counts[2] = {};
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      if constexpr (Spikes) {
        L::pairs(spikes.first + g * spikes.stride)[i] =
            (fired[0][g] ? uint32_t(L::kOne) : 0u) | (fired[1][g] ? uint32_t(L::kOne) << 16 : 0u);
      }
      counts[0] += fired[0][g], counts[1] += fired[1][g];
    }
    if constexpr (Count) count[2 * i] += counts[0], count[2 * i + 1] += counts[1];
  }
  if (n % 2 == 0) return;
  float xs[G];
  uint32_t fired[G];
  for (int g = 0; g < G; ++g) xs[g] = L::get(x.first[g * x.stride + n - 1]);
  element(n / 2, 0, xs, fired);
  for (int g = 0; g < G; ++g) {
    if constexpr (Spikes) spikes.first[g * spikes.stride + n - 1] = fired[g] ? L::kOne : uint16_t(0);
    if constexpr (Count) count[n - 1] += fired[g];
  }
}

struct ForwardPairs {
  ByGroup<decltype(&step_pairs<1, Charge::kDecay, Reset::kHard, true, true>)> steps;
  ForwardPairs(const Neuron& neuron, bool count) {
    with_charge_and_reset(neuron, [&](auto charge, auto reset) {
      constexpr Charge C = decltype(charge)::value;
      constexpr Reset R = decltype(reset)::value;
      if (count) {
        steps = {step_pairs<4, C, R, true, true>, step_pairs<2, C, R, true, true>, step_pairs<1, C, R, true, true>};
      } else {
        steps = {step_pairs<4, C, R, true, false>, step_pairs<2, C, R, true, false>, step_pairs<1, C, R, true, false>};
      }
    });
  }
};

struct AdvancePairs {
  ByGroup<decltype(&step_pairs<1, Charge::kDecay, Reset::kHard, false, false>)> steps;
  explicit AdvancePairs(const Neuron& neuron) {
    with_charge_and_reset(neuron, [&](auto charge, auto reset) {
      constexpr Charge C = decltype(charge)::value;
      constexpr Reset R = decltype(reset)::value;
      steps = {step_pairs<4, C, R, false, false>, step_pairs<2, C, R, false, false>, step_pairs<1, C, R, false, false>};
    });
  }
};

}  // namespace ckd::cpu::CKD_ISA
