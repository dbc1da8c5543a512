// Storage types on a CPU: rows of memory to and from rows of the arithmetic's type.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "ckd/params.h"

// A loop whose iterations do not depend on each other.
#define CKD_SIMD _Pragma("GCC ivdep")

namespace ckd::cpu::CKD_ISA {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// One struct a storage type: `Real` is its arithmetic, `kOne` the bits of a spike; load and store
// convert a row, rounding to nearest even.
struct Float32 {
  using Raw = uint32_t;
  using Real = float;
  static constexpr Raw kOne = 0x3F800000u;
  static void load(const Raw* __restrict from, Real* __restrict to, int64_t n) { std::memcpy(to, from, n * sizeof(Raw)); }
  static void store(const Real* __restrict from, Raw* __restrict to, int64_t n) { std::memcpy(to, from, n * sizeof(Raw)); }
};

struct Float64 {
  using Raw = uint64_t;
  using Real = double;
  static constexpr Raw kOne = 0x3FF0000000000000u;
  static void load(const Raw* __restrict from, Real* __restrict to, int64_t n) { std::memcpy(to, from, n * sizeof(Raw)); }
  static void store(const Real* __restrict from, Raw* __restrict to, int64_t n) { std::memcpy(to, from, n * sizeof(Raw)); }
};

struct BFloat16 {
  using Raw = uint16_t;
  using Real = float;
  static constexpr Raw kOne = 0x3F80u;
  static void load(const Raw* __restrict from, Real* __restrict to, int64_t n) {
    CKD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
  }
  static void store(const Real* __restrict from, Raw* __restrict to, int64_t n) {
    CKD_SIMD
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = bit_cast<uint32_t>(from[i]);
      const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
      to[i] = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
  }
};

struct Float16 {
  using Raw = uint16_t;
  using Real = float;
  static constexpr Raw kOne = 0x3C00u;
  static void load(const Raw* __restrict from, Real* __restrict to, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < n; ++i) to[i] = static_cast<float>(bit_cast<_Float16>(from[i]));
  }
  static void store(const Real* __restrict from, Raw* __restrict to, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; ++i) to[i] = bit_cast<uint16_t>(static_cast<_Float16>(from[i]));
  }
};

// Whether a row in memory is a row of the arithmetic already.
template <class S>
inline constexpr bool kIsReal = sizeof(typename S::Raw) == sizeof(typename S::Real);

// The row itself where it needs no conversion, else `buffer`, filled.
template <class S>
inline const typename S::Real* as_real(const typename S::Raw* row, typename S::Real* buffer, int64_t n) {
  if constexpr (kIsReal<S>) {
    return reinterpret_cast<const typename S::Real*>(row);
  } else {
    S::load(row, buffer, n);
    return buffer;
  }
}

template <class F>
void with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32: return f(Float32{});
    case DType::kBFloat16: return f(BFloat16{});
    case DType::kFloat16: return f(Float16{});
    case DType::kFloat64: return f(Float64{});
  }
}

}  // namespace ckd::cpu::CKD_ISA
