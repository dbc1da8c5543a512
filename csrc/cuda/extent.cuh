// Where things lie: the sizes of a call, and the place of W neighbouring neurons in it.
#pragma once
#include <cstdint>

#include "ckd/params.h"
#include "storage.cuh"

namespace ckd::cuda {

struct Parts {
  int64_t quotient, remainder;
};

// n over d, both >= 0; in 32 bits, several times faster, where they fit.
CKD_FN Parts split(int64_t n, int64_t d) {
  if (((n | d) >> 32) == 0) {
    const uint32_t quotient = static_cast<uint32_t>(n) / static_cast<uint32_t>(d);
    return {quotient, static_cast<uint32_t>(n) - quotient * static_cast<uint32_t>(d)};
  }
  return {n / d, n % d};
}

// W neighbouring neurons: the first one's frame and index in it, and where its memory begins.
struct Place {
  int64_t outer, at;
  int64_t state;     // in tensors of one value a neuron
  int64_t sequence;  // in tensors of all time steps
  int64_t input;     // in x
};

struct Extent {
  int64_t outer, rows, channels, inner, frame, neurons;
  int steps;
  bool repeated;

  explicit Extent(const Shape& shape)
      : outer(shape.outer),
        rows(shape.rows),
        channels(shape.channels),
        inner(shape.inner),
        frame(shape.frame()),
        neurons(shape.outer * shape.frame()),
        steps(static_cast<int>(shape.steps)),
        repeated(shape.repeated) {}

  CKD_FN Place place(int64_t frame_index, int64_t at) const {
    const int64_t state = frame_index * frame + at, sequence = frame_index * steps * frame + at;
    return {frame_index, at, state, sequence, repeated ? state : sequence};
  }
  // Of a neuron counted over all frames.
  CKD_FN Place place(int64_t neuron) const {
    if (outer == 1) return {0, neuron, neuron, neuron, neuron};  // time is outermost: nothing to compute
    const Parts parts = split(neuron, frame);
    return place(parts.quotient, parts.remainder);
  }

  CKD_FN int64_t locations() const { return outer * rows * inner; }
};

// Walks over neighbouring neurons: the channel and location of each.
struct Walk {
  int64_t column, channel, row;  // row counts over all frames

  CKD_DEVICE Walk(const Extent& e, const Place& p) {
    const Parts inside = split(p.at, e.inner), above = split(inside.quotient, e.channels);
    column = inside.remainder;
    channel = above.remainder;
    row = p.outer * e.rows + above.quotient;
  }
  CKD_DEVICE int64_t location(const Extent& e) const { return row * e.inner + column; }
  CKD_DEVICE void next(const Extent& e) {
    if (++column < e.inner) return;
    column = 0;
    if (++channel < e.channels) return;
    channel = 0;
    ++row;
  }
};

// Of vectors with one value a channel, what W neighbours need: one value for all of them, or one each.
template <int W, bool kEach>
struct ChannelValues {
  float value[kEach ? W : 1];

  CKD_DEVICE float operator[](int j) const { return value[kEach ? j : 0]; }

  ChannelValues() = default;
  CKD_DEVICE ChannelValues(const float* values, const Extent& e, const Place& p) {
    Walk walk(e, p);
    const float* first = values + walk.channel;
    if constexpr (kEach && W > 1) {
      const bool neighbours = e.inner == 1 && walk.channel + W <= e.channels;
      if (neighbours && reinterpret_cast<uintptr_t>(first) % (kFloatsAtOnce<W> * sizeof(float)) == 0) {
        load_floats(first, value);
        return;
      }
#pragma unroll
      for (int j = 0; j < W; ++j) {
        value[j] = values[walk.channel];
        walk.next(e);
      }
    } else {
      value[0] = *first;
    }
  }
};

// The first of this thread's W neighbours, counted over all frames.
template <int W>
CKD_DEVICE int64_t first_neuron() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * W;
}

}  // namespace ckd::cuda
