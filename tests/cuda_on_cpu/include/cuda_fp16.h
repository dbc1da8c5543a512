// float16 for a C++ compiler; conversions round to nearest even.
#pragma once
#include "cuda_runtime.h"

struct __half {
  _Float16 value;
  __half() = default;
  explicit __half(float f) : value(static_cast<_Float16>(f)) {}
  explicit operator float() const { return static_cast<float>(value); }
};
struct __half2 {
  __half x, y;
};
inline float2 __half22float2(__half2 pair) { return {static_cast<float>(pair.x), static_cast<float>(pair.y)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
