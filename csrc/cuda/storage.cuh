// Storage types on a GPU: neighbouring values as they lie in memory, to and from float.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define CKD_DEVICE __device__ __forceinline__

// The memory that a launch asks for; what lies in it is the kernel's affair.
extern __shared__ __align__(16) unsigned char ckd_dynamic_shared[];

namespace ckd::cuda {

// One access to memory. With kWide<S> values it is 16 bytes, the widest there is.
template <class S, int W>
struct alignas(sizeof(S) * W) Pack {
  S lane[W];
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

// The two 2-byte types convert in pairs, which takes half the instructions.
CKD_DEVICE float2 widen_pair(const Pack<__half, 2>& pair) { return __half22float2({pair.lane[0], pair.lane[1]}); }
CKD_DEVICE float2 widen_pair(const Pack<__nv_bfloat16, 2>& pair) {
  return __bfloat1622float2({pair.lane[0], pair.lane[1]});
}
CKD_DEVICE void narrow_pair(float a, float b, Pack<__half, 2>& pair) {
  const __half2 both = __floats2half2_rn(a, b);
  pair = {both.x, both.y};
}
CKD_DEVICE void narrow_pair(float a, float b, Pack<__nv_bfloat16, 2>& pair) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  pair = {both.x, both.y};
}

template <class S, int W>
CKD_DEVICE void widen(const Pack<S, W>& pack, float (&values)[W]) {
  if constexpr (sizeof(S) == 4 || W == 1) {
#pragma unroll
    for (int j = 0; j < W; ++j) values[j] = static_cast<float>(pack.lane[j]);
  } else {
#pragma unroll
    for (int j = 0; j < W; j += 2) {
      const float2 both = widen_pair(Pack<S, 2>{pack.lane[j], pack.lane[j + 1]});
      values[j] = both.x;
      values[j + 1] = both.y;
    }
  }
}

// Rounds to nearest even.
template <class S, int W>
CKD_DEVICE Pack<S, W> narrow(const float (&values)[W]) {
  Pack<S, W> pack;
  if constexpr (sizeof(S) == 4 || W == 1) {
#pragma unroll
    for (int j = 0; j < W; ++j) pack.lane[j] = static_cast<S>(values[j]);
  } else {
#pragma unroll
    for (int j = 0; j < W; j += 2) {
      Pack<S, 2> both;
      narrow_pair(values[j], values[j + 1], both);
      pack.lane[j] = both.lane[0];
      pack.lane[j + 1] = both.lane[1];
    }
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
    for (int k = 0; k < kPart; ++k) values[j + k] = part.lane[k];
  }
}

template <int W>
CKD_DEVICE void store_floats(float* to, const float (&values)[W]) {
  constexpr int kPart = kFloatsAtOnce<W>;
#pragma unroll
  for (int j = 0; j < W; j += kPart) {
    Pack<float, kPart> part;
#pragma unroll
    for (int k = 0; k < kPart; ++k) part.lane[k] = values[j + k];
    store<kPart>(to + j, part);
  }
}

template <int W>
CKD_DEVICE void fill(float value, float (&values)[W]) {
#pragma unroll
  for (int j = 0; j < W; ++j) values[j] = value;
}

}  // namespace ckd::cuda
