// How a vector loop takes the elements of its rows: one at a time, or two of bfloat16 that lie in one word, where no
// lane of a vector has to become wider or narrower.
#pragma once
#include <cstring>

#include "cpu/memory/rows.h"

namespace ckd::cpu::CKD_ISA {

// One element of storage type S at a time, kStep from one to the next.
template <class S, int kStep = 1>
struct Single {
  using Storage = S;
  using Real = typename S::Real;
  using Tail = Single;
  template <class T>
  using As = Single<T, kStep>;
  static constexpr int kWidth = 1;

  // Where an iteration's element j lies in a row, and where in a row of state.
  static int64_t element(int64_t i, int) { return kStep * i; }
  static int64_t state(int64_t i, int, int64_t) { return i; }

  template <int G>
  CKD_FN static void load(Rows<const typename S::Raw> rows, int64_t i, Real (&x)[1][G]) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) x[0][g] = S::get(rows.first[g * rows.stride + kStep * i]);
  }
  template <int G>
  CKD_FN static void store(const Real (&x)[1][G], Rows<typename S::Raw> rows, int64_t i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) rows.first[g * rows.stride + kStep * i] = S::put(x[0][g]);
  }
  // The spikes of potentials.
  template <int G, class Potential>
  CKD_FN static void store_spikes(const Potential (&h)[1][G], Potential fire_level, Rows<typename S::Raw> rows,
                                  int64_t i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      rows.first[g * rows.stride + kStep * i] = h[0][g] >= fire_level ? S::kOne : typename S::Raw(0);
    }
  }

  // A tensor's row of state: as a loop reads it, which may be where it lies; copied to be changed; and copied back.
  static const Real* view_state(const Real* from, int64_t, Real*, int64_t) { return from; }
  static void load_state(const Real* from, int64_t n, Real* row, int64_t) { std::memcpy(row, from, n * sizeof(Real)); }
  static void store_state(const Real* row, int64_t, int64_t n, Real* to) { std::memcpy(to, row, n * sizeof(Real)); }
};

// Two at a time. A row of state has its even elements first, and its odd ones `half` behind them.
struct Pair {
  using Storage = BFloat16;
  using Real = float;
  using Tail = Single<BFloat16, 2>;
  template <class T>
  using As = Pair;
  static constexpr int kWidth = 2;

  static int64_t element(int64_t i, int j) { return 2 * i + j; }
  static int64_t state(int64_t i, int j, int64_t half) { return j * half + i; }

  template <int G>
  CKD_FN static void load(Rows<const uint16_t> rows, int64_t i, float (&x)[2][G]) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const uint32_t pair = BFloat16::pairs(rows.first + g * rows.stride)[i];
      x[0][g] = BFloat16::first(pair), x[1][g] = BFloat16::second(pair);
    }
  }
  template <int G>
  CKD_FN static void store(const float (&x)[2][G], Rows<uint16_t> rows, int64_t i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) BFloat16::pairs(rows.first + g * rows.stride)[i] = BFloat16::put(x[0][g], x[1][g]);
  }
  template <int G>
  CKD_FN static void store_spikes(const float (&h)[2][G], float fire_level, Rows<uint16_t> rows, int64_t i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      BFloat16::pairs(rows.first + g * rows.stride)[i] = (h[0][g] >= fire_level ? uint32_t(BFloat16::kOne) : 0u) |
                                                         (h[1][g] >= fire_level ? uint32_t(BFloat16::kOne) << 16 : 0u);
    }
  }

  // NaN of a tensor become `plain_nan`s.
  static const float* view_state(const float* from, int64_t n, float* row, int64_t half) {
    load_state(from, n, row, half);
    return row;
  }
  static void load_state(const float* __restrict from, int64_t n, float* row, int64_t half) {
    float* __restrict even = row;
    float* __restrict odd = row + half;
    CKD_SIMD
    for (int64_t i = 0; i < n / 2; ++i) {
      even[i] = plain_nan(from[2 * i]);
      odd[i] = plain_nan(from[2 * i + 1]);
    }
    if (n % 2 != 0) even[n / 2] = plain_nan(from[n - 1]);
  }
  static void store_state(const float* row, int64_t half, int64_t n, float* __restrict to) {
    const float* __restrict even = row;
    const float* __restrict odd = row + half;
    CKD_SIMD
    for (int64_t i = 0; i < n / 2; ++i) {
      to[2 * i] = even[i];
      to[2 * i + 1] = odd[i];
    }
    if (n % 2 != 0) to[n - 1] = even[n / 2];
  }
};

// Calls f(L(), i) for the iterations that cover the elements [begin, end) of a row, but for an odd one at the end,
// which is left to L::Tail.
template <class L, class F>
CKD_FN void in_lanes(int64_t begin, int64_t end, const F& f) {
  CKD_SIMD
  for (int64_t i = begin / L::kWidth; i < end / L::kWidth; ++i) f(L(), i);
}

}  // namespace ckd::cpu::CKD_ISA
