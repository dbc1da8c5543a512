// Spikes as bits, eight to a byte, and back; sixteen at a time where there are as many.
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <bit>

#include "ckd/cpu.h"
#include "cpu/memory/dtype.h"
#include "cpu/memory/threads.h"

namespace ckd::cpu::CKD_ISA {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the first of two bytes must be the lower half of their word");

// Calls f(first, n) for pieces of a row; `first` is a multiple of 16.
template <class F>
void for_each_piece(int64_t count, int threads, const F& f) {
  Shape row;
  row.inner = count;
  Cut(row, kTile).run(threads, [&] { return [&](const Span& span) { f(span.begin, span.end - span.begin); }; });
}

// Without its sign a value is not 0; -0 is 0.
template <class Raw>
inline bool is_spike(Raw raw) {
  return static_cast<Raw>(raw << 1) != 0;
}

#if defined(__SSE2__)
inline __m128i load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

// Eight words, all ones where a value is 0.
inline __m128i zeros(const uint16_t* from) {
  const __m128i raw = load(from);
  return _mm_cmpeq_epi16(_mm_add_epi16(raw, raw), _mm_setzero_si128());
}
inline __m128i zeros(const uint32_t* from) {
  const __m128i first = load(from), second = load(from + 4), zero = _mm_setzero_si128();
  return _mm_packs_epi32(_mm_cmpeq_epi32(_mm_add_epi32(first, first), zero),
                         _mm_cmpeq_epi32(_mm_add_epi32(second, second), zero));
}

template <class Raw>
inline uint16_t sixteen_bits(const Raw* from) {
  return static_cast<uint16_t>(~_mm_movemask_epi8(_mm_packs_epi16(zeros(from), zeros(from + 8))));
}
inline constexpr size_t kWidestGathered = sizeof(uint32_t);
#else
template <class Raw>
uint16_t sixteen_bits(const Raw* from);
inline constexpr size_t kWidestGathered = 0;
#endif

template <class S>
void pack(const PackBits& call, int threads) {
  using Raw = typename S::Raw;
  for_each_piece(call.count, threads, [&](int64_t first, int64_t n) {
    const Raw* spikes = static_cast<const Raw*>(call.spikes) + first;
    uint8_t* bits = call.bits + first / 8;
    int64_t i = 0;
    if constexpr (sizeof(Raw) <= kWidestGathered) {
      for (; i + 16 <= n; i += 16) {
        // Work enough lies between two loads that the processor's own prefetching stays behind.
        __builtin_prefetch(spikes + i + 1024);
        const uint16_t word = sixteen_bits(spikes + i);
        std::memcpy(bits + i / 8, &word, 2);
      }
    }
    for (; i < n; i += 8) {
      unsigned byte = 0;
      for (int64_t k = 0; k < std::min<int64_t>(8, n - i); ++k) byte |= unsigned{is_spike(spikes[i + k])} << k;
      bits[i / 8] = static_cast<uint8_t>(byte);
    }
  });
}

#if defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class S>
void unpack(const UnpackBits& call, int threads) {
  using Raw = typename S::Raw;
  constexpr int kLanes = kVectorBytes / sizeof(Raw);
  typedef Raw Vector __attribute__((vector_size(kVectorBytes)));
  Vector place{};
  for (int k = 0; k < kLanes; ++k) place[k] = static_cast<Raw>(Raw{1} << k);
  for_each_piece(call.count, threads, [&](int64_t first, int64_t n) {
    const uint8_t* bits = call.bits + first / 8;
    Raw* spikes = static_cast<Raw*>(call.spikes) + first;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      uint16_t word;
      std::memcpy(&word, bits + i / 8, 2);
      for (int j = 0; j < 16; j += kLanes) {
        const Vector some = Vector{} + static_cast<Raw>(word >> j);
        const Vector values = Vector((some & place) == place) & (Vector{} + S::kOne);
        std::memcpy(spikes + i + j, &values, sizeof values);
      }
    }
    for (; i < n; ++i) spikes[i] = bits[i / 8] >> i % 8 & 1 ? S::kOne : Raw(0);
  });
}

}  // namespace

void run(const PackBits& call, int threads) {
  with_storage(call.dtype, [&](auto s) { pack<decltype(s)>(call, threads); });
}

void run(const UnpackBits& call, int threads) {
  with_storage(call.dtype, [&](auto s) { unpack<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
