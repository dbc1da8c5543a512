// Where things lie: the sizes of a call, and the place of W neighbouring neurons in it.
#pragma once
#include <cstdint>

#include "ckd/params.h"
#include "storage.cuh"

namespace ckd::cuda {

struct Parts {
  int64_t quotient, remainder;
};

// Divides by a number that is the same for all threads; the quotient of a small number takes a multiplication (Granlund
// and Montgomery 1994), where a division takes some twenty instructions.
struct Divider {
  int64_t divisor;
  uint32_t factor, shift;

  Divider() : Divider(1) {}
  explicit Divider(int64_t d) : divisor(d), factor(0), shift(31) {
    if (d > kSmall) return;  // a small number's quotient is 0
    for (shift = 0; (int64_t{1} << shift) < d; ++shift) {
    }
    factor = static_cast<uint32_t>((((int64_t{1} << shift) - d) << 32) / d + 1);
  }

  CKD_FN Parts split(int64_t n) const {
    if (n >= kSmall) return {n / divisor, n % divisor};
    const uint32_t small = static_cast<uint32_t>(n);
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(small) * factor) >> 32);
    const uint32_t quotient = (high + small) >> shift;
    return {quotient, small - quotient * static_cast<uint32_t>(divisor)};
  }

 private:
  static constexpr int64_t kSmall = int64_t{1} << 31;
};

// W neighbouring neurons: where the first one is, and where its memory begins.
struct Place {
  int64_t row, channel, column;  // row counts over all frames
  int64_t state;                 // in tensors of one value per neuron
  int64_t sequence;              // in tensors of all time steps
  int64_t input;                 // in x
};

struct Extent {
  int64_t outer, channels, inner, frame, neurons;
  Divider by_rows, by_channels, by_inner, by_frame;
  int steps;
  bool repeated;

  explicit Extent(const Shape& shape)
      : outer(shape.outer),
        channels(shape.channels),
        inner(shape.inner),
        frame(shape.frame()),
        neurons(shape.outer * shape.frame()),
        by_rows(shape.rows),
        by_channels(shape.channels),
        by_inner(shape.inner),
        by_frame(shape.frame()),
        steps(static_cast<int>(shape.steps)),
        repeated(shape.repeated) {}

  CKD_FN Place place(int64_t row, int64_t channel, int64_t column) const {
    const int64_t state = (row * channels + channel) * inner + column;
    // Where time is outermost there is nothing to compute.
    const int64_t sequence = outer == 1 ? state : state + by_rows.split(row).quotient * (steps - 1) * frame;
    return {row, channel, column, state, sequence, repeated ? state : sequence};
  }
  // The place of a neuron that is counted over all frames.
  CKD_FN Place place(int64_t neuron) const {
    const Parts inside = by_inner.split(neuron), above = by_channels.split(inside.quotient);
    const int64_t sequence = outer == 1 ? neuron : neuron + by_frame.split(neuron).quotient * (steps - 1) * frame;
    return {above.quotient, above.remainder, inside.remainder, neuron, sequence, repeated ? neuron : sequence};
  }

  CKD_FN int64_t rows() const { return outer * by_rows.divisor; }
  CKD_FN int64_t locations() const { return rows() * inner; }
};

// Walks over neighbouring neurons: the channel and location of each.
struct Walk {
  int64_t column, channel, row;

  CKD_DEVICE explicit Walk(const Place& p) : column(p.column), channel(p.channel), row(p.row) {}
  CKD_DEVICE int64_t location(const Extent& e) const { return row * e.inner + column; }
  CKD_DEVICE void next(const Extent& e) {
    if (++column < e.inner) return;
    column = 0;
    if (++channel < e.channels) return;
    channel = 0;
    ++row;
  }
};

// What W neighbours need of a vector with one value per channel: one value for all of them, or one each.
template <int W, bool kEach>
struct ChannelValues {
  float value[kEach ? W : 1];

  CKD_DEVICE float operator[](int j) const { return value[kEach ? j : 0]; }

  ChannelValues() = default;
  CKD_DEVICE ChannelValues(const float* values, const Extent& e, const Place& p) {
    Walk walk(p);
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
