// Storage types on a GPU: neighbouring values as they lie in memory, to and from float.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#define CKD_DEVICE __device__ __forceinline__

// Waits until the kernels before this one in its stream are done: called before a kernel reads or writes memory. That
// kernel need not be the first one that launch_after() has started.
CKD_DEVICE void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A kernel that is launched after this one may take its place when all blocks have come here.
CKD_DEVICE void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// x, or 0 where it is negative; NaN stays NaN. x must not be -0.
CKD_DEVICE float positive_or_nan(float x) {
#ifdef __CUDA_ARCH__
  float positive;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(positive) : "f"(x));
  return positive;
#else
  return 0.0f > x ? 0.0f : x;
#endif
}

// The dynamic shared memory of a launch; each kernel lays it out for itself.
extern __shared__ __align__(16) unsigned char ckd_dynamic_shared[];

namespace ckd::cuda {

// One access to memory. With kWide<S> values it is 16 bytes, the widest there is. Pairs of 2-byte values stay in one
// register until they are used: unpacking one would wait for its load.
template <class S, int W>
struct alignas(sizeof(S) * W) Pack {
  static constexpr bool kPairs = sizeof(S) == 2 && W > 1;
  using Unit = std::conditional_t<kPairs, uint32_t, S>;
  Unit unit[kPairs ? W / 2 : W];
};

template <class S>
inline constexpr int kWide = 16 / sizeof(S);

template <int W, class S>
CKD_DEVICE Pack<S, W> load(const S* from) {
  return *reinterpret_cast<const Pack<S, W>*>(from);
}

template <int W, class S>
CKD_DEVICE void store(S* to, const Pack<S, W>& pack) {
  *reinterpret_cast<Pack<S, W>*>(to) = pack;
}

template <class To, class From>
CKD_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A pair's first value lies in the low half.
template <class S>
CKD_DEVICE float2 widen_pair(uint32_t pair) {
  if constexpr (std::is_same_v<S, __half>) {
    return __half22float2(bits_as<__half2>(pair));
  } else {
    return {bits_as<float>(pair << 16), bits_as<float>(pair & 0xFFFF0000u)};
  }
}

template <class S>
CKD_DEVICE uint32_t narrow_pair(float first, float second) {
  if constexpr (std::is_same_v<S, __half>) {
    return bits_as<uint32_t>(__floats2half2_rn(first, second));
  } else {
    return bits_as<uint32_t>(__floats2bfloat162_rn(first, second));
  }
}

template <class S, int W>
CKD_DEVICE void widen(const Pack<S, W>& pack, float (&values)[W]) {
  if constexpr (Pack<S, W>::kPairs) {
#pragma unroll
    for (int j = 0; j < W; j += 2) {
      const float2 both = widen_pair<S>(pack.unit[j / 2]);
      values[j] = both.x;
      values[j + 1] = both.y;
    }
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) values[j] = static_cast<float>(pack.unit[j]);
  }
}

// Rounds to nearest even.
template <class S, int W>
CKD_DEVICE Pack<S, W> narrow(const float (&values)[W]) {
  Pack<S, W> pack;
  if constexpr (Pack<S, W>::kPairs) {
#pragma unroll
    for (int j = 0; j < W; j += 2) pack.unit[j / 2] = narrow_pair<S>(values[j], values[j + 1]);
  } else {
#pragma unroll
    for (int j = 0; j < W; ++j) pack.unit[j] = static_cast<S>(values[j]);
  }
  return pack;
}

// Floats that belong to W neighbours: with 2-byte storage two accesses.
template <int W>
inline constexpr int kFloatsAtOnce = W < 4 ? W : 4;

template <int W>
CKD_DEVICE void load_floats(const float* from, float (&values)[W]) {
  constexpr int kPart = kFloatsAtOnce<W>;
#pragma unroll
  for (int j = 0; j < W; j += kPart) {
    const Pack<float, kPart> part = load<kPart>(from + j);
#pragma unroll
    for (int k = 0; k < kPart; ++k) values[j + k] = part.unit[k];
  }
}

template <int W>
CKD_DEVICE void store_floats(float* to, const float (&values)[W]) {
  constexpr int kPart = kFloatsAtOnce<W>;
#pragma unroll
  for (int j = 0; j < W; j += kPart) {
    Pack<float, kPart> part;
#pragma unroll
    for (int k = 0; k < kPart; ++k) part.unit[k] = values[j + k];
    store<kPart>(to + j, part);
  }
}

template <int W>
CKD_DEVICE void fill(float value, float (&values)[W]) {
#pragma unroll
  for (int j = 0; j < W; ++j) values[j] = value;
}

// In pairs, and pairs of these: additions that do not wait for each other.
template <int W>
CKD_DEVICE float total(const float (&values)[W]) {
  float sum[W];
#pragma unroll
  for (int j = 0; j < W; ++j) sum[j] = values[j];
#pragma unroll
  for (int half = W / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) sum[j] = sum[j] + sum[j + half];
  }
  return sum[0];
}

}  // namespace ckd::cuda
