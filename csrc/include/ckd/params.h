// What a call is: plain structs that Python fills and both the CPU and the CUDA kernels read.
#pragma once
#include <cstdint>

#include "ckd/surrogate.h"

namespace ckd {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

// h[t] from v[t-1] and x[t]; "integrate" is kDecay with a decay of exactly 1.
enum class Charge : int {
  kDecay,      // v*decay + x
  kLeak,       // v - (v - rest)/tau + x
  kLeakInput,  // v + (x - (v - rest))/tau
};

// The resets "soft", "soft_delayed" and "none" are one: subtract `drop_now` after a spike and
// `drop_later` at the step that follows it, one or both of them 0 (h - 0 is h, bit for bit).
enum class Reset : int { kHard, kSubtract };

// A neuron, its constants in double precision; the kernels round them once to their arithmetic.
struct Neuron {
  Charge charge = Charge::kDecay;
  Reset reset = Reset::kHard;
  bool detach_reset = false;
  SurrogateKind surrogate = SurrogateKind::kTriangle;
  double leak = 0;        // decay or tau, where Lif*::leak is null
  double threshold = 1;   // of u = h - threshold, the surrogate's argument
  double fire_level = 1;  // it fires where h >= fire_level
  double rest = 0;        // v_reset, or 0
  double drop_now = 0;
  double drop_later = 0;
  double c0 = 0, c1 = 0;  // the surrogate's constants
};

// [outer, steps, rows, channels, inner], all dense; `repeated`: x holds one frame for all steps.
struct Shape {
  int64_t outer = 1, steps = 1, rows = 1, channels = 1, inner = 1;
  bool repeated = false;
  int64_t frame() const { return rows * channels * inner; }
};

// "real" below is float, or double for kFloat64 storage. Null pointers: not given, not wanted.

// What charges a neuron behind batch normalisation: x[t] = y[t]*scale + shift, then + residual[t]; `x` of a call is y.
struct Affine {
  const void* scale = nullptr;     // real [channels]; null: x itself charges it
  const void* shift = nullptr;     // real [channels]
  const void* residual = nullptr;  // storage [outer, steps, frame]
};

struct LifForward {
  Neuron neuron;
  Shape shape;
  DType dtype = DType::kFloat32;
  const void* x = nullptr;       // storage [outer, steps or 1, frame]
  const void* v_init = nullptr;  // real [outer, frame]
  const void* leak = nullptr;    // real, one value or one per channel
  bool leak_per_channel = false;
  void* spikes = nullptr;       // storage [outer, steps, frame]
  void* v_last = nullptr;       // real [outer, frame]
  float* sam = nullptr;         // [outer, rows, inner]
  void* checkpoints = nullptr;  // real [(steps - 1)/kCheckpointEvery, outer, frame]: v after steps 16, 32, ...
  Affine affine;
};

struct LifBackward {
  Neuron neuron;
  Shape shape;
  DType dtype = DType::kFloat32;
  const void* x = nullptr;
  const void* v_init = nullptr;
  const void* leak = nullptr;
  bool leak_per_channel = false;
  const void* checkpoints = nullptr;  // null only where steps <= kCheckpointEvery
  const void* grad_spikes = nullptr;  // storage [outer, steps, frame]
  const void* grad_v = nullptr;       // real [outer, frame]
  const float* grad_sam = nullptr;    // [outer, rows, inner]
  void* grad_x = nullptr;             // storage, x's shape: of a repeated frame, summed over time
  void* grad_v_init = nullptr;        // real [outer, frame]
  void* grad_leak = nullptr;          // real, leak's shape
  Affine affine;
  // With affine, backward has two passes. One that is given `sums` writes these alone: dL/dx and
  // dL/dx*(y - mean), summed over all but channels. The other one is given what follows from them and writes
  // grad_x = ((dL/dx - offset) - (y - mean)*slope)*scale, or dL/dx*scale where the three are null. Of a repeated frame,
  // dL/dx is summed over time in both.
  const void* mean = nullptr;     // real [channels]
  const void* offset = nullptr;   // real [channels]
  const void* slope = nullptr;    // real [channels]
  void* grad_residual = nullptr;  // storage [outer, steps, frame]: dL/dx
  double* sums = nullptr;         // [2, channels]
};

struct SamForward {
  Shape shape;
  DType dtype = DType::kFloat32;
  const void* spikes = nullptr;  // storage [outer, steps or 1, frame]
  void* sam = nullptr;           // real [outer, rows, inner]
};

// Of a channel, over all else; of a repeated frame, over one.
struct BatchStatistics {
  Shape shape;
  DType dtype = DType::kFloat32;
  const void* y = nullptr;    // storage [outer, steps or 1, frame]
  double* moments = nullptr;  // [2, channels]: mean and biased variance
};

// What statistics are folded into; `values` times *count (1 where null) of them a channel were there.
struct BatchFold {
  int64_t channels = 0;
  DType dtype = DType::kFloat32;       // of y; the vectors below are real
  const double* moments = nullptr;     // [2, channels]
  const void* weight = nullptr;        // [channels]; null: ones
  const void* bias = nullptr;          // [channels]; null: zeros
  const void* running_mean = nullptr;  // [channels], both or neither
  const void* running_var = nullptr;
  const double* count = nullptr;
  double values = 1, momentum = 0, eps = 0;
  void* folded =
      nullptr;  // [4 or 6, channels]: mean, 1/sqrt(var + eps), scale, shift, the next running mean and variance
};

// What the sums of a backward pass come to.
struct BatchCoefficients {
  int64_t channels = 0;
  DType dtype = DType::kFloat32;
  const double* sums = nullptr;  // [2, channels]: LifBackward::sums
  const void* invstd = nullptr;  // [channels]
  const double* count = nullptr;
  double values = 1;
  void* coefficients = nullptr;  // [4, channels]: LifBackward's offset and slope, dL/dweight, dL/dbias
};

// Spikes as bits: bit i % 8 of byte i / 8 is whether spike i is not zero; unused bits of the last byte are 0.
struct PackBits {
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  const void* spikes = nullptr;  // storage [count]
  uint8_t* bits = nullptr;       // [(count + 7)/8]
};

struct UnpackBits {
  DType dtype = DType::kFloat32;
  int64_t count = 0;
  const uint8_t* bits = nullptr;  // [(count + 7)/8]
  void* spikes = nullptr;         // storage [count], 0 or 1
};

inline constexpr int kCheckpointEvery = 16;

inline int64_t checkpoint_count(int64_t steps) { return (steps - 1) / kCheckpointEvery; }

}  // namespace ckd
