// What charges the neurons and where its gradient goes: x itself, or batch normalisation of it (normalise.cuh). Kernels
// take both as template arguments, a struct that travels with the call and its part at W neighbours, so that another
// kind of current is another pair of structs and not another kernel.
#pragma once
#include "extent.cuh"
#include "series.cuh"

namespace ckd::cuda {

// x itself.
template <class S>
struct StoredCurrent {
  using Storage = S;
  const S* x;

  template <int W, bool kEach>
  class At {
    const S* at_;
    const int64_t frame_;

   public:
    using Packets = Series<S, W>;
    CKD_DEVICE At(const StoredCurrent& current, const Extent& e, const Place& p)
        : at_(current.x + p.input), frame_(e.repeated ? 0 : e.frame) {}

    CKD_DEVICE Packets from(int step) const { return {at_ + step * frame_, frame_}; }
    CKD_DEVICE static void values(const typename Packets::Packet& packet, float (&x)[W]) { widen(packet, x); }
  };
};

// W sums over time; nothing where kWanted is false.
template <int W, bool kWanted>
struct TimeSum {
  float sum[W];
  CKD_DEVICE TimeSum() { fill(0.0f, sum); }
  CKD_DEVICE void add(const float (&terms)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) sum[j] = sum[j] + terms[j];
  }
};
template <int W>
struct TimeSum<W, false> {};

// dL/dx, stored step by step; of a repeated frame, its sum over time is stored.
template <class S>
struct StoredGradient {
  static constexpr bool kNeedsInput = false;  // whether add() is given what the current has stored
  S* grad_x;

  template <int W, bool kEach, bool kGeneral>
  class At {
    S* to_;
    const int64_t frame_;
    TimeSum<W, kGeneral> total_;

   public:
    CKD_DEVICE At(const StoredGradient& gradient, const Extent& e, const Place& p)
        : to_(gradient.grad_x + p.input + (e.repeated ? 0 : (e.steps - 1) * e.frame)),
          frame_(kGeneral && e.repeated ? 0 : e.frame) {}

    // The gradient of each time step, the last step first.
    template <class Current>
    CKD_DEVICE void add(const Current&, const Pack<S, W>&, const float (&gradient)[W]) {
      if constexpr (kGeneral) {
        if (frame_ == 0) return total_.add(gradient);
      }
      store(to_, narrow<S>(gradient));
      to_ -= frame_;
    }
    template <class Current>
    CKD_DEVICE void finish(const Current&) {
      if constexpr (kGeneral) {
        if (frame_ == 0) store(to_, narrow<S>(total_.sum));
      }
    }
  };
};

}  // namespace ckd::cuda
