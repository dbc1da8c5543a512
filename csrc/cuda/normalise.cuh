// Batch normalisation as a current: x[t] = y[t]*scale + shift (+ residual[t]), and the two passes of its gradient.
#pragma once
#include "current.cuh"

namespace ckd::cuda {

// y and the residual side by side.
template <class S, int W>
struct NormalisedSeries {
  struct Packet {
    Pack<S, W> y, residual;
  };
  Series<S, W> y, residual;

  CKD_DEVICE bool given() const { return true; }
  CKD_DEVICE Packet load() const { return {y.load(), residual.given() ? residual.load() : Pack<S, W>{}}; }
  CKD_DEVICE void next() {
    y.next();
    if (residual.given()) residual.next();
  }
};

template <class S>
struct NormalisedCurrent {
  using Storage = S;
  const S* y;
  const float* scale;
  const float* shift;
  const S* residual;  // null: none

  template <int W, bool kEach>
  class At {
    const S* y_;
    const S* residual_;
    const int64_t frame_, y_frame_;
    const ChannelValues<W, kEach> scale_, shift_;

   public:
    using Packets = NormalisedSeries<S, W>;
    CKD_DEVICE At(const NormalisedCurrent& current, const Extent& e, const Place& p)
        : y_(current.y + p.input),
          residual_(current.residual ? current.residual + p.sequence : nullptr),
          frame_(e.frame),
          y_frame_(e.repeated ? 0 : e.frame),
          scale_(current.scale, e, p),
          shift_(current.shift, e, p) {}

    CKD_DEVICE Packets from(int step) const {
      return {{y_ + step * y_frame_, y_frame_}, {residual_ ? residual_ + step * frame_ : nullptr, frame_}};
    }
    CKD_DEVICE Series<S, W> stored_back_from(int step) const { return {y_ + step * y_frame_, -y_frame_}; }

    CKD_DEVICE void values(const typename Packets::Packet& packet, float (&x)[W]) const {
      widen(packet.y, x);
#pragma unroll
      for (int j = 0; j < W; ++j) x[j] = x[j] * scale_[j] + shift_[j];
      if (residual_ == nullptr) return;
      float residual[W];
      widen(packet.residual, residual);
#pragma unroll
      for (int j = 0; j < W; ++j) x[j] = x[j] + residual[j];
    }
    CKD_DEVICE float scale(int j) const { return scale_[j]; }
  };
};

// The second pass: dL/dy from dL/dx and what the first pass found.
template <class S>
struct NormalisedGradient {
  static constexpr bool kNeedsInput = true;
  const float* mean;  // these three null: running statistics, which do not depend on y
  const float* offset;
  const float* slope;
  const S* y;
  S* grad_y;
  S* grad_residual;  // null: not wanted

  template <int W, bool kEach, bool kGeneral>
  class At {
    const bool through_statistics_;
    ChannelValues<W, kEach> mean_, offset_, slope_;
    const S* y_;
    S* to_;
    S* residual_to_;
    const int64_t frame_, y_frame_;
    TimeSum<W, kGeneral> total_;

    template <class Current>
    CKD_DEVICE void store_gradient(const Current& current, const Pack<S, W>& stored, const float (&gradient)[W]) const {
      float y[W], gy[W];
      widen(stored, y);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        float through = gradient[j];
        if (through_statistics_) through = (through - offset_[j]) - (y[j] - mean_[j]) * slope_[j];
        gy[j] = through * current.scale(j);
      }
      store(to_, narrow<S>(gy));
    }

   public:
    CKD_DEVICE At(const NormalisedGradient& gradient, const Extent& e, const Place& p)
        : through_statistics_(gradient.mean != nullptr),
          y_(gradient.y + p.input),
          to_(gradient.grad_y + p.input + (e.repeated ? 0 : (e.steps - 1) * e.frame)),
          residual_to_(gradient.grad_residual ? gradient.grad_residual + p.sequence + (e.steps - 1) * e.frame
                                              : nullptr),
          frame_(e.frame),
          y_frame_(kGeneral && e.repeated ? 0 : e.frame) {
      if (through_statistics_) {
        mean_ = {gradient.mean, e, p};
        offset_ = {gradient.offset, e, p};
        slope_ = {gradient.slope, e, p};
      }
    }

    template <class Current>
    CKD_DEVICE void add(const Current& current, const Pack<S, W>& stored, const float (&gradient)[W]) {
      if (residual_to_) {
        store(residual_to_, narrow<S>(gradient));
        residual_to_ -= frame_;
      }
      if constexpr (kGeneral) {
        if (y_frame_ == 0) return total_.add(gradient);
      }
      store_gradient(current, stored, gradient);
      to_ -= y_frame_;
    }
    template <class Current>
    CKD_DEVICE void finish(const Current& current) {
      if constexpr (kGeneral) {
        if (y_frame_ == 0) store_gradient(current, load<W>(y_), total_.sum);
      }
    }
  };
};

// The first pass: for each of W neighbours, dL/dx and dL/dx*(y - mean) summed over time.
template <class S>
struct NormalisedGradientSums {
  static constexpr bool kNeedsInput = true;
  const float* mean;
  const S* y;

  template <int W, bool kEach, bool kGeneral>
  class At {
    const ChannelValues<W, kEach> mean_;
    const S* y_;
    const bool repeated_;

    CKD_DEVICE void add_product(const Pack<S, W>& stored, const float (&gradient)[W]) {
      float y[W];
      widen(stored, y);
#pragma unroll
      for (int j = 0; j < W; ++j) y[j] = gradient[j] * (y[j] - mean_[j]);
      product.add(y);
    }

   public:
    TimeSum<W, true> gradient, product;

    CKD_DEVICE At(const NormalisedGradientSums& sums, const Extent& e, const Place& p)
        : mean_(sums.mean, e, p), y_(sums.y + p.input), repeated_(kGeneral && e.repeated) {}

    template <class Current>
    CKD_DEVICE void add(const Current&, const Pack<S, W>& stored, const float (&gx)[W]) {
      gradient.add(gx);
      if (!repeated_) add_product(stored, gx);
    }
    template <class Current>
    CKD_DEVICE void finish(const Current&) {
      if (repeated_) add_product(load<W>(y_), gradient.sum);
    }
  };
};

}  // namespace ckd::cuda
