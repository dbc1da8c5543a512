// What a tile reads: what charges its neurons, and the gradients of its spikes.
#pragma once
#include "cpu/loop/normalise.h"
#include "cpu/memory/scratch.h"

namespace ckd::cpu::CKD_ISA {

// The rows of a tile that charge its neurons, in place where they are of type `In`, else in the arithmetic's type.
template <class S, class In>
class Input {
  using Raw = typename S::Raw;
  using Real = typename S::Real;
  using Loop = typename InLoop<S>::type;

 public:
  // Whether rows of x as it is are converted.
  static constexpr bool kCopies = !std::is_same_v<S, In>;
  // How many rows of scratch memory it takes.
  static constexpr int64_t kRows = 2 + (kConverts<S> ? 3 : 1) * kGroup;

  // `has_blocks`: whether terms() are those of blocks; rows() must not be called then.
  template <class Call>
  Input(const Call& call, const Reach& reach, bool has_blocks, Scratch<Real>& scratch)
      : shape_(call.shape),
        at_(call.shape),
        x_(static_cast<const Raw*>(call.x)),
        affine_(call.affine),
        to_read_(reach.to_read),
        stride_(scratch.stride()),
        channel_rows_(call.shape, has_blocks),
        scale_(channel_rows_.add(affine_.scale, scratch.rows(1))),
        shift_(channel_rows_.add(affine_.shift, scratch.rows(1))),
        rows_(scratch.rows(kGroup)) {
    if constexpr (kConverts<S>) converted_ = scratch.rows(2 * kGroup);
  }

  // Goes to the elements [begin, end) of a frame.
  void start(int64_t outer, int64_t begin, int64_t end) {
    outer_ = outer;
    begin_ = begin;
    if (affine_.scale) channel_rows_.start(begin, end);
  }

  // Scale and shift, from an element of the tile on, where a normalisation charges it.
  ChannelTerms<Real> terms(int64_t first = 0) const { return {scale_ + first, shift_ + first, {}, {}, {}}; }

  // Rows as they are stored, of G steps from step t on and n elements from element `first` of the tile on.
  template <int G>
  Rows<const Raw> x_rows(int64_t t, int64_t first, int64_t n) const {
    const Rows<const Raw> rows{x_ + at_.x(outer_, t, begin_ + first), shape_.repeated ? 0 : at_.frame};
    prefetch_rows(rows, shape_.repeated ? 1 : G, n, to_read_);
    return rows;
  }
  template <int G>
  Rows<const Raw> residual_rows(int64_t t, int64_t first, int64_t n) const {
    if (!affine_.residual) return {};
    const Rows<const Raw> rows{static_cast<const Raw*>(affine_.residual) + at_.step(outer_, t, begin_ + first),
                               at_.frame};
    prefetch_rows(rows, G, n, to_read_);
    return rows;
  }

  // The same of those that charge the neurons, which stay until the next call.
  template <int G>
  Rows<const typename In::Raw> rows(int64_t t, int64_t first, int64_t n) {
    const Rows<const Raw> from = x_rows<G>(t, first, n);
    if constexpr (!kCopies) {
      if (!affine_.scale) return from;
    }
    const bool once = shape_.repeated && !affine_.residual;
    const Rows<Real> to{rows_, stride_};
    if (!affine_.scale) {
      for (int g = 0; g < (once ? 1 : G); ++g) load_row<S>(from.first + g * from.stride, rows_ + g * stride_, n);
    } else if (affine_.residual) {
      const Rows<const Raw> residual = residual_rows<G>(t, first, n);
      normalise_steps<G, Source::kResidual, Loop>(
          n, loop_rows<G, S>(from, n, {converted_, stride_}), scale_ + first, shift_ + first,
          loop_rows<G, S>(residual, n, {converted_ + kGroup * stride_, stride_}), to);
    } else if (once) {
      const auto y = loop_rows<1, S>(from, n, {converted_, stride_});
      normalise_steps<1, Source::kNormalised, Loop>(n, y, scale_ + first, shift_ + first, {}, to);
    } else {
      const auto y = loop_rows<G, S>(from, n, {converted_, stride_});
      normalise_steps<G, Source::kNormalised, Loop>(n, y, scale_ + first, shift_ + first, {}, to);
    }
    return {reinterpret_cast<const typename In::Raw*>(rows_), once ? 0 : stride_};
  }

 private:
  const Shape& shape_;
  const Address at_;
  const Raw* x_;
  const Affine affine_;
  const int64_t to_read_, stride_;
  ChannelRows<Real> channel_rows_;
  const Real *scale_, *shift_;
  Real *rows_, *converted_ = nullptr;
  int64_t outer_ = 0, begin_ = 0;
};

template <int G, class L>
void add_steps(int64_t n, Rows<const typename L::Raw> a, const typename L::Real* __restrict b,
               Rows<typename L::Real> sum) {
  const typename L::Raw* __restrict from = a.first;
  typename L::Real* __restrict to = sum.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) to[g * sum.stride + i] = L::get(from[g * a.stride + i]) + b[i];
  }
}

// What comes down to a tile's spikes: their own gradient, and that of the map that was made of them.
template <class S>
class GradSpikes {
  using Raw = typename S::Raw;
  using Real = typename S::Real;
  using Loop = typename InLoop<S>::type;

 public:
  static constexpr int64_t kRows = 1 + (kConverts<S> ? 2 : 1) * kGroup;

  GradSpikes(const LifBackward& call, const Reach& reach, Scratch<Real>& scratch)
      : call_(call),
        at_(call.shape),
        to_read_(reach.to_read),
        share_(Real(1.0 / static_cast<double>(call.shape.steps * call.shape.channels))),
        stride_(scratch.stride()),
        from_sam_(scratch.rows(1)),
        rows_(scratch.rows(kGroup)) {
    if constexpr (kConverts<S>) converted_ = scratch.rows(kGroup);
  }

  void start(int64_t outer, int64_t begin, int64_t end) {
    outer_ = outer;
    begin_ = begin;
    const Shape& shape = call_.shape;
    if (call_.grad_sam) {
      broadcast_locations(shape, begin, end, call_.grad_sam + outer * shape.rows * shape.inner, share_, from_sam_);
    } else if (!call_.grad_spikes) {
      fill_row(Real(0), end - begin, from_sam_);
    }
  }

  // What comes from the map alone, of every step alike.
  const Real* from_sam() const { return from_sam_; }

  // dL/ds of G steps from step t on, n elements from element `first` of the tile on, until the next call.
  template <int G>
  Rows<const Real> rows(int64_t t, int64_t first, int64_t n) {
    if (!call_.grad_spikes) return {from_sam_ + first, 0};
    const Rows<const Raw> from{static_cast<const Raw*>(call_.grad_spikes) + at_.step(outer_, t, begin_ + first),
                               at_.frame};
    prefetch_rows(from, G, n, to_read_);
    if (call_.grad_sam) {
      add_steps<G, Loop>(n, loop_rows<G, S>(from, n, {converted_, stride_}), from_sam_ + first, {rows_, stride_});
    } else if constexpr (std::is_same_v<RealOf<S>, S>) {
      return {reinterpret_cast<const Real*>(from.first), from.stride};
    } else {
      for (int g = 0; g < G; ++g) load_row<S>(from.first + g * from.stride, rows_ + g * stride_, n);
    }
    return {rows_, stride_};
  }

 private:
  const LifBackward& call_;
  const Address at_;
  const int64_t to_read_;
  const Real share_;
  const int64_t stride_;
  Real *from_sam_, *rows_, *converted_ = nullptr;
  int64_t outer_ = 0, begin_ = 0;
};

}  // namespace ckd::cpu::CKD_ISA
