// Storage types on a CPU: rows of memory to and from rows of the arithmetic's type.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
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

// A value that no storage type has rounded: its NaN, which may have any payload, with the payload that processors make.
template <class Real>
inline Real plain_nan(Real value) {
  return value == value ? value : std::numeric_limits<Real>::quiet_NaN();
}

// Prefetches what lies ahead of a place in a row. The processor's own prefetchers stop at the end of a page, and a loop
// that does some arithmetic on 2-byte values does not look far enough ahead to hide that.
inline constexpr int64_t kAhead = 4096;  // bytes

template <class T>
inline void prefetch(const T* from, int64_t bytes = kAhead) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + bytes);
}

template <class T>
inline void prefetch_to_write(T* to, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<char*>(to) + bytes, 1);
}

// One struct a storage type: `Real` is its arithmetic, `kOne` the bits of a spike. `get` and `put` convert an
// element inside a vector loop, rounding to nearest even; load and store convert a row. Rows of Float32
// are rows of float, too (the kernels are compiled with -fno-strict-aliasing).
struct Float32 {
  using Raw = uint32_t;
  using Real = float;
  static constexpr Raw kOne = 0x3F800000u;
  static Real get(Raw raw) { return bit_cast<Real>(raw); }
  static Raw put(Real value) { return bit_cast<Raw>(value); }
};

struct Float64 {
  using Raw = uint64_t;
  using Real = double;
  static constexpr Raw kOne = 0x3FF0000000000000u;
  static Real get(Raw raw) { return bit_cast<Real>(raw); }
  static Raw put(Real value) { return bit_cast<Raw>(value); }
};

struct BFloat16 {
  using Raw = uint16_t;
  using Real = float;
  static constexpr Raw kOne = 0x3F80u;
  static Real get(Raw raw) { return bit_cast<Real>(static_cast<uint32_t>(raw) << 16); }
  static Raw put(Real value) {
    // A NaN's payload may be all ones, which would round to -0. Chosen in 32 bits, as everything else here is.
    return static_cast<Raw>((value != value ? 0x7FC00000u : rounded(value)) >> 16);
  }

  // Two neighbours in a word: no lane of a vector has to become wider or narrower.
  typedef uint32_t __attribute__((aligned(2), may_alias)) Pair;
  static const Pair* pairs(const Raw* row) { return reinterpret_cast<const Pair*>(row); }
  static Pair* pairs(Raw* row) { return reinterpret_cast<Pair*>(row); }
  static Real first(uint32_t pair) { return bit_cast<Real>(pair << 16); }
  static Real second(uint32_t pair) { return bit_cast<Real>(pair & 0xFFFF0000u); }
  // For what was computed of bfloat16 and `plain_nan`s: no NaN's payload is long enough to be rounded up.
  static uint32_t put(Real first, Real second) { return (rounded(first) >> 16) | (rounded(second) & 0xFFFF0000u); }

 private:
  static uint32_t rounded(Real value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    return (bits & 0x10000u) != 0 ? bits + 0x8000u : bits + 0x7FFFu;
  }
};

// The processor converts rows of these; no compiler puts that, or `get`, into a vector loop.
struct Float16 {
  using Raw = uint16_t;
  using Real = float;
  static constexpr Raw kOne = 0x3C00u;
  static Real get(Raw raw) { return static_cast<float>(bit_cast<_Float16>(raw)); }
  static void load(const Raw* __restrict from, Real* __restrict to, int64_t n) {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
    for (; i < n; ++i) to[i] = get(from[i]);
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

// What a vector loop reads and writes in place of a storage type: the type itself where it has get and put,
// else rows converted to the arithmetic's type.
template <class S>
struct InLoop {
  using type = S;
};
template <>
struct InLoop<Float16> {
  using type = Float32;
};

template <class S>
inline constexpr bool kConverts = !std::is_same_v<typename InLoop<S>::type, S>;

// Rows of the arithmetic's type, as a storage type.
template <class S>
using RealOf = std::conditional_t<std::is_same_v<typename S::Real, double>, Float64, Float32>;

template <class S>
inline void load_row(const typename S::Raw* __restrict from, typename S::Real* __restrict to, int64_t n) {
  if constexpr (kConverts<S>) {
    S::load(from, to, n);
  } else {
    CKD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = S::get(from[i]);
  }
}

template <class S>
inline void store_row(const typename S::Real* __restrict from, typename S::Raw* __restrict to, int64_t n) {
  if constexpr (kConverts<S>) {
    S::store(from, to, n);
  } else {
    CKD_SIMD
    for (int64_t i = 0; i < n; ++i) to[i] = S::put(from[i]);
  }
}

template <class F>
void with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Float32{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
    case DType::kFloat64:
      return f(Float64{});
  }
}

}  // namespace ckd::cpu::CKD_ISA
