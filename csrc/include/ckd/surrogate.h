// Surrogate derivatives sg(u) of the firing step; ckd_kernels/surrogate.py says which is which.
// Their order of operations is the numerics contract; c0 and c1 come from Python.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ckd/platform.h"

namespace ckd {

CKD_FN float magnitude(float x) { return ::fabsf(x); }
CKD_FN double magnitude(double x) { return ::fabs(x); }

// x, or 0 where it is negative; NaN stays NaN.
CKD_FN double positive_part(double x) { return 0.0 > x ? 0.0 : x; }
CKD_FN float positive_part(float x) {
#ifdef __CUDA_ARCH__
  return 0.0f > x ? 0.0f : x;
#else
  // The order of floats that are not negative is that of their bits, and what is negative is so as an integer, too: one
  // instruction instead of a comparison and a choice. (A NaN of negative sign would be lost; a difference from a
  // magnitude has none.)
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = bits > 0 ? bits : 0;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
#endif
}

CKD_FN double exponential(double x) { return ::exp(x); }

// exp(x) for x <= 0. The CPU version (Cephes' polynomial, 2 ulp) is plain arithmetic, so that it vectorises.
CKD_FN float exponential(float x) {
#ifdef __CUDA_ARCH__
  return ::expf(x);
#else
  const float scaled = x < -87.0f ? -87.0f : x;
  const float n = (scaled * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounds to nearest
  float r = scaled - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
#endif
}

// n/d from an approximation of 1/d that is a unit in the last place off: rounded as a division is, for 1 <= d <= 2^60
// and 2^-60 <= |n| <= 2^60, or 1 <= d <= 4 and |n| >= 2^-100. (With a smaller n a unit may be lost, and with a larger
// or smaller d all of it.)
CKD_FN float quotient(float n, float d, float inverse) {
#ifdef __CUDA_ARCH__
  const auto fused = [](float a, float b, float c) { return __fmaf_rn(a, b, c); };
#else
  const auto fused = [](float a, float b, float c) { return std::fma(a, b, c); };
#endif
  const float refined = fused(fused(-d, inverse, 1.0f), inverse, inverse), first = n * refined;
  return fused(fused(-d, first, n), refined, first);
}

// n/d for 1 <= d <= 4. A GPU's division spends most of its time on what cannot be here.
CKD_FN double divide_by_moderate(double n, double d) { return n / d; }
CKD_FN float divide_by_moderate(float n, float d) {
#ifdef __CUDA_ARCH__
  return quotient(n, d, __fdividef(1.0f, d));
#else
  return n / d;
#endif
}

#define CKD_DERIVATIVE  \
  template <class Real> \
  CKD_FN static Real derivative
// The derivative's denominator, at least 1; the numerator is c0, or 1.
#define CKD_DENOMINATOR \
  template <class Real> \
  CKD_FN static Real denominator
#define CKD_UNUSED [[maybe_unused]]

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  CKD_DERIVATIVE(Real u, Real c0, CKD_UNUSED Real c1) {
    const Real e = exponential(magnitude(u) * -c0), d = e + Real(1);
    return divide_by_moderate(e * c0, d * d);
  }
};

struct ATan {
  static constexpr const char* name = "atan";
  CKD_DENOMINATOR(Real u, CKD_UNUSED Real c0, Real c1) {
    const Real k = u * c1;
    return k * k + Real(1);
  }
  CKD_DERIVATIVE(Real u, Real c0, Real c1) { return c0 / denominator(u, c0, c1); }
};

struct Triangle {
  static constexpr const char* name = "triangle";
  CKD_DERIVATIVE(Real u, Real c0, Real c1) {
    const Real d = c0 - magnitude(u) * c1;
    return positive_part(d);
  }
};

struct Rectangle {
  static constexpr const char* name = "rectangle";
  CKD_DERIVATIVE(Real u, Real c0, Real c1) { return magnitude(u) < c1 ? c0 : Real(0); }
};

struct PiecewiseExp {
  static constexpr const char* name = "piecewise_exp";
  CKD_DERIVATIVE(Real u, Real c0, Real c1) { return exponential(magnitude(u) * -c1) * c0; }
};

struct SoftSign {
  static constexpr const char* name = "soft_sign";
  CKD_DERIVATIVE(Real u, Real c0, Real c1) {
    const Real w = magnitude(u) + c0;
    return Real(1) / ((w * w) * c1);
  }
};

struct FastSigmoid {
  static constexpr const char* name = "fast_sigmoid";
  static constexpr bool kOverOne = true;  // 1 is the numerator
  CKD_DENOMINATOR(Real u, Real c0, CKD_UNUSED Real c1) {
    const Real d = magnitude(u) * c0 + Real(1);
    return d * d;
  }
  CKD_DERIVATIVE(Real u, Real c0, Real c1) { return Real(1) / denominator(u, c0, c1); }
};

struct SuperSpike {
  static constexpr const char* name = "super_spike";
  CKD_DERIVATIVE(Real u, Real c0, CKD_UNUSED Real c1) {
    const Real d = magnitude(u) + Real(1);
    return c0 / (d * d);
  }
};

struct Erf {
  static constexpr const char* name = "erf";
  CKD_DERIVATIVE(Real u, Real c0, Real c1) {
    const Real w = u * c1;
    return exponential(-(w * w)) * c0;
  }
};

#undef CKD_DENOMINATOR
#undef CKD_DERIVATIVE
#undef CKD_UNUSED

// The one list: X(struct). Everything else (numbers, names, dispatch) follows from it.
#define CKD_SURROGATES(X) \
  X(Sigmoid) X(ATan) X(Triangle) X(Rectangle) X(PiecewiseExp) X(SoftSign) X(FastSigmoid) X(SuperSpike) X(Erf)

enum class SurrogateKind : int {
#define CKD_ENUMERATE(S) k##S,
  CKD_SURROGATES(CKD_ENUMERATE)
#undef CKD_ENUMERATE
};

// Calls f(S{}) with the struct of a kind: a run-time choice becomes a type.
template <class F>
CKD_FN void with_surrogate(SurrogateKind kind, F&& f) {
  switch (kind) {
#define CKD_CASE(S)         \
  case SurrogateKind::k##S: \
    f(S{});                 \
    break;
    CKD_SURROGATES(CKD_CASE)
#undef CKD_CASE
  }
}

}  // namespace ckd
