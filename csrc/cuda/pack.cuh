// Spikes as bits, eight to a byte, and back. A value is its bits here: Raw is uint16_t or uint32_t.
#pragma once
#include "storage.cuh"

namespace ckd::cuda {

inline constexpr int kPackThreads = 256;
// Vectors of 16 bytes that a thread has in flight together.
inline constexpr int kPackVectors = 4;

template <class Raw>
inline constexpr int64_t kPackedByBlock = int64_t{kPackThreads} * kPackVectors * kWide<Raw>;

template <class Raw>
struct PackBitsCall {
  const Raw* spikes;
  uint8_t* bits;
  int64_t count;
  bool wide;  // spikes begin at 16 bytes
};

template <class Raw>
struct UnpackBitsCall {
  const uint8_t* bits;
  Raw* spikes;
  int64_t count;
  Raw one;
  bool wide;
};

// The first spike of a thread's v-th vector.
template <class Raw>
CKD_DEVICE int64_t first_spike(int v) {
  return (static_cast<int64_t>(blockIdx.x) * kPackVectors + v) * kPackThreads * kWide<Raw> + threadIdx.x * kWide<Raw>;
}

// Whether all of a block's spikes exist.
template <class Raw>
CKD_DEVICE bool whole_block(int64_t count) {
  return (static_cast<int64_t>(blockIdx.x) + 1) * kPackedByBlock<Raw> <= count;
}

// One bit per value, set where it is not 0 (nor -0).
template <class Raw>
CKD_DEVICE uint32_t nonzero_bits(const Pack<uint32_t, 4>& vector) {
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t word = vector.unit[k];
    if constexpr (sizeof(Raw) == 2) {
      bits |= static_cast<uint32_t>((word & 0x7FFFu) != 0) << (2 * k);
      bits |= static_cast<uint32_t>((word & 0x7FFF0000u) != 0) << (2 * k + 1);
    } else {
      bits |= static_cast<uint32_t>((word & 0x7FFFFFFFu) != 0) << k;
    }
  }
  return bits;
}

template <class Raw>
CKD_DEVICE Pack<uint32_t, 4> spread_bits(uint32_t bits, uint32_t one) {
  Pack<uint32_t, 4> vector;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if constexpr (sizeof(Raw) == 2) {
      vector.unit[k] = (bits >> (2 * k) & 1 ? one : 0) | (bits >> (2 * k + 1) & 1 ? one << 16 : 0);
    } else {
      vector.unit[k] = bits >> k & 1 ? one : 0;
    }
  }
  return vector;
}

template <class Raw>
__global__ void __launch_bounds__(kPackThreads) pack_bits_kernel(const __grid_constant__ PackBitsCall<Raw> call) {
  constexpr int W = kWide<Raw>;
  uint32_t bits[kPackVectors] = {};
  if (call.wide && whole_block<Raw>(call.count)) {
    Pack<uint32_t, 4> vector[kPackVectors];
#pragma unroll
    for (int v = 0; v < kPackVectors; ++v) {
      vector[v] = load<4>(reinterpret_cast<const uint32_t*>(call.spikes + first_spike<Raw>(v)));
    }
#pragma unroll
    for (int v = 0; v < kPackVectors; ++v) bits[v] = nonzero_bits<Raw>(vector[v]);
  } else {
#pragma unroll
    for (int v = 0; v < kPackVectors; ++v) {
      const int64_t first = first_spike<Raw>(v);
      for (int j = 0; j < W && first + j < call.count; ++j) {
        bits[v] |= static_cast<uint32_t>(static_cast<Raw>(call.spikes[first + j] << 1) != 0) << j;
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kPackVectors; ++v) {
    const int64_t first = first_spike<Raw>(v);
    // Neighbouring lanes share a byte where a vector has fewer than eight values.
    uint32_t byte = bits[v] << first % 8;
    for (int apart = 1; apart < 8 / W; apart *= 2) byte |= __shfl_xor_sync(0xffffffffu, byte, apart);
    if (first % 8 == 0 && first < call.count) call.bits[first / 8] = static_cast<uint8_t>(byte);
  }
}

template <class Raw>
__global__ void __launch_bounds__(kPackThreads) unpack_bits_kernel(const __grid_constant__ UnpackBitsCall<Raw> call) {
  constexpr int W = kWide<Raw>;
  if (call.wide && whole_block<Raw>(call.count)) {
    uint32_t bits[kPackVectors];
#pragma unroll
    for (int v = 0; v < kPackVectors; ++v) bits[v] = call.bits[first_spike<Raw>(v) / 8];
#pragma unroll
    for (int v = 0; v < kPackVectors; ++v) {
      const int64_t first = first_spike<Raw>(v);
      store(reinterpret_cast<uint32_t*>(call.spikes + first), spread_bits<Raw>(bits[v] >> first % 8, call.one));
    }
    return;
  }
  for (int v = 0; v < kPackVectors; ++v) {
    const int64_t first = first_spike<Raw>(v);
    for (int64_t i = first; i < first + W && i < call.count; ++i) {
      call.spikes[i] = call.bits[i / 8] >> i % 8 & 1 ? call.one : Raw(0);
    }
  }
}

}  // namespace ckd::cuda
