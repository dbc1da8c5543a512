// Stores past the caches. A plain store reads the line that it is going to overwrite, and evicts what is still wanted
// for data that a large output's reader will not find in cache anyway.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "ckd/cpu.h"

namespace ckd::cpu::CKD_ISA {

// Whether an output of so many bytes is written past the caches: where, with an input as large, it would not stay
// there. On processors with much more cache than that (of several cores, whose other cores fill it, too), whoever reads
// 32 MiB of spikes next took up to a third longer, 64 MiB as long, and 128 a tenth less.
inline bool is_streamed([[maybe_unused]] int64_t bytes) {
#if defined(__SSE2__)
  constexpr int64_t kMost = int64_t(64) << 20;
  const int64_t cache = processor().last_cache;
  return bytes >= (cache > 0 ? std::min(cache / 2, kMost) : kMost);
#else
  return false;
#endif
}

// Copies a row, which had better be in the first-level cache; no two rows may overlap. A thread that has called it
// calls stream_fence before others may read what it wrote.
template <class T>
inline void stream_row(const T* from, T* to, int64_t n) {
  const char* source = reinterpret_cast<const char*>(from);
  char* target = reinterpret_cast<char*>(to);
  int64_t bytes = n * static_cast<int64_t>(sizeof(T));
#if defined(__SSE2__)
  // Whole lines only: parts of one would each go to memory on their own.
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<uintptr_t>(target) % 64), lines = (bytes - head) / 64;
  std::memcpy(target, source, head);
  source += head;
  target += head;
  bytes -= head + lines * 64;
  for (int64_t line = 0; line < lines; ++line, source += 64, target += 64) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(source));
#elif defined(__AVX2__)
    for (int at = 0; at < 64; at += 32) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target + at),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + at)));
    }
#else
    for (int at = 0; at < 64; at += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + at),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at)));
    }
#endif
  }
#endif
  std::memcpy(target, source, bytes);
}

inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace ckd::cpu::CKD_ISA
