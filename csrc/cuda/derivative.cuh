// Surrogate derivatives of many neighbours. A GPU's division takes some twenty instructions and a branch each, which
// keeps neighbours from being computed side by side; where the divisor is no extreme, six instructions have the same
// bits.
#pragma once
#include "ckd/neuron.h"
#include "storage.cuh"

namespace ckd::cuda {

// 1/x, a unit in the last place off at most.
CKD_DEVICE float approximate_inverse(float x) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
#else
  return 1.0f / x;
#endif
}

template <class Surrogate, int N>
CKD_DEVICE void derivatives(const float (&h)[N], const Constants<float>& k, float (&sg)[N]) {
  if constexpr (requires { Surrogate::denominator(1.0f, 1.0f, 1.0f); }) {
    constexpr float kLargest = 0x1p60f;
    constexpr bool kOverOne = requires { Surrogate::kOverOne; };
    const float numerator = kOverOne ? 1.0f : k.c0;
    bool all_moderate = numerator >= 1 / kLargest && numerator <= kLargest;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float d = Surrogate::denominator(h[j] - k.threshold, k.c0, k.c1);
      all_moderate = all_moderate && d <= kLargest;
      sg[j] = quotient(numerator, d, approximate_inverse(d));
    }
    if (all_moderate) return;
  }
#pragma unroll
  for (int j = 0; j < N; ++j) sg[j] = Surrogate::derivative(h[j] - k.threshold, k.c0, k.c1);
}

}  // namespace ckd::cuda
