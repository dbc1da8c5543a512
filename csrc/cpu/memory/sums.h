// Sums in double precision over eight lanes: the same order of additions whatever the instruction set's width.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/memory/dtype.h"

namespace ckd::cpu::CKD_ISA {

class DoubleLanes {
#if defined(__AVX512F__)
  static constexpr int kWidth = 8;
#elif defined(__AVX2__) && defined(__F16C__)
  static constexpr int kWidth = 4;
#else
  static constexpr int kWidth = 2;
#endif
  static constexpr int kParts = 8 / kWidth;
  typedef double Part __attribute__((vector_size(8 * kWidth)));

 public:
  static constexpr int kCount = 8;

  CKD_FN DoubleLanes() : parts_{} {}
  CKD_FN explicit DoubleLanes(double value) {
    for (Part& part : parts_) part = value - Part{};
  }
  CKD_FN explicit DoubleLanes(const double* from) {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) std::memcpy(&parts_[p], from + p * kWidth, sizeof(Part));
  }

  template <class S>
  CKD_FN static DoubleLanes load(const typename S::Raw* from) {
    DoubleLanes result;
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) result.parts_[p] = widen(from + p * kWidth, S{});
    return result;
  }

  CKD_FN void store(double* to) const {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) std::memcpy(to + p * kWidth, &parts_[p], sizeof(Part));
  }

  CKD_FN friend DoubleLanes operator+(const DoubleLanes& a, const DoubleLanes& b) {
    return a.with(b, [](Part x, Part y) { return x + y; });
  }
  CKD_FN friend DoubleLanes operator-(const DoubleLanes& a, const DoubleLanes& b) {
    return a.with(b, [](Part x, Part y) { return x - y; });
  }
  CKD_FN friend DoubleLanes operator*(const DoubleLanes& a, const DoubleLanes& b) {
    return a.with(b, [](Part x, Part y) { return x * y; });
  }

  typedef double Two __attribute__((vector_size(16)));

  // The totals of both: halves are added up until one is left.
  CKD_FN static Two totals(const DoubleLanes& a, const DoubleLanes& b) {
    const Two x = a.halves(), y = b.halves();
    return Two{x[0], y[0]} + Two{x[1], y[1]};
  }

 private:
#if defined(__AVX512F__)
  // The mask of all keeps GCC from warning of what the plain conversion leaves undefined.
  CKD_FN static Part widen(__m256 floats) { return reinterpret_cast<Part>(_mm512_maskz_cvtps_pd(0xFF, floats)); }
  CKD_FN static Part widen(const uint32_t* from, Float32) {
    return widen(_mm256_loadu_ps(reinterpret_cast<const float*>(from)));
  }
  CKD_FN static Part widen(const uint16_t* from, BFloat16) {
    const __m256i raw = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return widen(_mm256_castsi256_ps(_mm256_slli_epi32(raw, 16)));
  }
  CKD_FN static Part widen(const uint16_t* from, Float16) {
    return widen(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
#elif defined(__AVX2__) && defined(__F16C__)
  CKD_FN static Part widen(__m128 floats) { return reinterpret_cast<Part>(_mm256_cvtps_pd(floats)); }
  CKD_FN static Part widen(const uint32_t* from, Float32) {
    return widen(_mm_loadu_ps(reinterpret_cast<const float*>(from)));
  }
  CKD_FN static Part widen(const uint16_t* from, BFloat16) {
    const __m128i raw = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return widen(_mm_castsi128_ps(_mm_slli_epi32(raw, 16)));
  }
  CKD_FN static Part widen(const uint16_t* from, Float16) {
    return widen(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
#endif
  template <class S>
  CKD_FN static Part widen(const typename S::Raw* from, S) {
    Part part;
    for (int j = 0; j < kWidth; ++j) part[j] = S::get(from[j]);
    return part;
  }

  // Halves added up until two are left.
  CKD_FN Two halves() const {
#if defined(__AVX512F__)
    const __m512d eight = reinterpret_cast<__m512d>(parts_[0]);
    return halves(
        _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xF, eight, 0), _mm512_maskz_extractf64x4_pd(0xF, eight, 1)));
#elif defined(__AVX2__) && defined(__F16C__)
    return halves(reinterpret_cast<__m256d>(parts_[0] + parts_[1]));
#else
    return (parts_[0] + parts_[2]) + (parts_[1] + parts_[3]);
#endif
  }
#if defined(__AVX2__)
  CKD_FN static Two halves(__m256d four) {
    return reinterpret_cast<Two>(_mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1)));
  }
#endif

  template <class F>
  CKD_FN DoubleLanes with(const DoubleLanes& other, const F& f) const {
    DoubleLanes result;
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) result.parts_[p] = f(parts_[p], other.parts_[p]);
    return result;
  }

  Part parts_[kParts];
};

// The sums of two rows of the arithmetic's type.
template <class Real>
CKD_FN DoubleLanes::Two sum_rows(const Real* a, const Real* b, int64_t n) {
  using S = std::conditional_t<std::is_same_v<Real, double>, Float64, Float32>;
  constexpr int kChains = 4;  // additions that do not wait for each other
  const auto* as = reinterpret_cast<const typename S::Raw*>(a);
  const auto* bs = reinterpret_cast<const typename S::Raw*>(b);
  DoubleLanes x[kChains], y[kChains];
  int64_t i = 0;
  for (; i + kChains * DoubleLanes::kCount <= n; i += kChains * DoubleLanes::kCount) {
#pragma GCC unroll 4
    for (int j = 0; j < kChains; ++j) {
      x[j] = x[j] + DoubleLanes::load<S>(as + i + j * DoubleLanes::kCount);
      y[j] = y[j] + DoubleLanes::load<S>(bs + i + j * DoubleLanes::kCount);
    }
  }
  DoubleLanes::Two sums = DoubleLanes::totals((x[0] + x[1]) + (x[2] + x[3]), (y[0] + y[1]) + (y[2] + y[3]));
  for (; i < n; ++i) sums += DoubleLanes::Two{a[i], b[i]};
  return sums;
}

// The sum of one row.
template <class Real>
inline double sum_row(const Real* row, int64_t n) {
  return sum_rows(row, row, n)[0];
}

}  // namespace ckd::cpu::CKD_ISA
