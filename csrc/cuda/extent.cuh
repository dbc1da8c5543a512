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

// W neighbouring neurons: the first one's index in the frame, and which frame.
struct Place {
  int64_t outer, at;
};

struct Extent {
  int64_t outer, rows, channels, inner, frame;
  int steps;
  bool repeated;

  explicit Extent(const Shape& shape)
      : outer(shape.outer),
        rows(shape.rows),
        channels(shape.channels),
        inner(shape.inner),
        frame(shape.frame()),
        steps(static_cast<int>(shape.steps)),
        repeated(shape.repeated) {}

  // Of a neuron, counted over all frames of one time step.
  CKD_FN Place place(int64_t neuron) const {
    if (outer == 1) return {0, neuron};
    const Parts parts = split(neuron, frame);
    return {parts.quotient, parts.remainder};
  }

  // Offsets of the first time step.
  CKD_FN int64_t state(const Place& p) const { return p.outer * frame + p.at; }
  CKD_FN int64_t sequence(const Place& p) const { return p.outer * steps * frame + p.at; }
  CKD_FN int64_t input(const Place& p) const { return repeated ? state(p) : sequence(p); }

  CKD_FN int64_t neurons() const { return outer * frame; }
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

// The W neighbours of each thread, one after another where the grid is shorter than the tensor.
template <int W, class F>
CKD_DEVICE void for_each_neuron(const Extent& e, F&& run) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x * W;
  const int64_t neurons = e.neurons();
  for (int64_t n = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * W; n < neurons; n += step) {
    run(n, e.place(n));
  }
}

}  // namespace ckd::cuda
