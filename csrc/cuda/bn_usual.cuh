// Batch normalisation and neuron as most networks ask for them: 1 or 4 steps, no state before or after, and on the way
// back a neuron that a kernel is compiled for. A thread keeps its channels' constants and visits W neighbours at a
// time, with all that it reads of them in flight; lif_forward.cuh, lif_backward.cuh and bn_reduce.cuh serve every other
// call. Both passes of a direction can be one launch (all_at_once.cuh). The kernels are in bn_usual_forward.cuh and
// bn_usual_backward.cuh.
#pragma once
#include "all_at_once.cuh"
#include "channels.cuh"
#include "launch.h"
#include "rule.cuh"
#include "series.cuh"

namespace ckd::cuda {

// What all passes need.
template <class S>
struct UsualInput {
  ChannelCut cut;  // planes: outer, rows
  Extent extent;
  Rule rule;
  float leak;
  const S* y;
  const float* scale;
  const float* shift;
  const S* residual;  // null: none
};

// Of a vector with one value a channel, what W neighbours need.
template <int W, bool kEach>
struct ChannelConstants {
  float value[kEach ? W : 1];
  CKD_DEVICE ChannelConstants(const float* values, int64_t channel) { load_floats(values + channel, value); }
  CKD_DEVICE float operator[](int j) const { return value[kEach ? j : 0]; }
};

}  // namespace ckd::cuda
