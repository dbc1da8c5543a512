// Arrays whose surroundings must stay as they are.
#pragma once
#include <cstdlib>
#include <cstring>

#include "fibers.h"

// An array that is filled with NaN bits, between two strips that must stay as they are.
template <class T>
class Guarded {
  static constexpr size_t kStrip = 64;
  static constexpr unsigned char kMark = 0xA5;
  size_t size_, offset_;
  unsigned char* memory_;
  size_t bytes() const { return size_ * sizeof(T); }

 public:
  T* data;
  Guarded(size_t size, bool misaligned) : size_(size), offset_(kStrip + (misaligned ? sizeof(T) : 0)) {
    memory_ = static_cast<unsigned char*>(std::aligned_alloc(64, (bytes() + 3 * kStrip) / 64 * 64 + 64));
    std::memset(memory_, kMark, bytes() + 2 * kStrip);
    std::memset(memory_ + offset_, 0xFF, bytes());
    data = reinterpret_cast<T*>(memory_ + offset_);
    ASAN_POISON_MEMORY_REGION(memory_, offset_ / 8 * 8);
    ASAN_POISON_MEMORY_REGION(memory_ + offset_ + bytes(), kStrip - 16);
  }
  ~Guarded() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, bytes() + 2 * kStrip);
    std::free(memory_);
  }
  Guarded(const Guarded&) = delete;
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data[i]; }
  bool intact() const {
    ASAN_UNPOISON_MEMORY_REGION(memory_, bytes() + 2 * kStrip);
    for (size_t i = 0; i < offset_; ++i)
      if (memory_[i] != kMark) return false;
    for (size_t i = offset_ + bytes(); i < offset_ + bytes() + kStrip - 16; ++i)
      if (memory_[i] != kMark) return false;
    return true;
  }
};
