// What charges a neuron: x, or what a normalisation and a residual make of it.
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

  // `has_blocks`: whether scale() and shift() are those of blocks; rows() is not to be asked for then.
  template <class Call>
  Input(const Call& call, const Reach& reach, bool has_blocks, Scratch<Real>& scratch)
      : shape_(call.shape),
        at_(call.shape),
        x_(static_cast<const Raw*>(call.x)),
        affine_(call.affine),
        to_read_(reach.to_read),
        stride_(scratch.stride()),
        channel_rows_(call.shape, has_blocks),
        scale_(scratch.rows(1)),
        shift_(scratch.rows(1)),
        rows_(scratch.rows(kGroup)) {
    if constexpr (kConverts<S>) converted_ = scratch.rows(2 * kGroup);
    channel_rows_.add(affine_.scale, scale_);
    channel_rows_.add(affine_.shift, shift_);
  }

  // Goes to the elements [begin, end) of a frame.
  void start(int64_t outer, int64_t begin, int64_t end) {
    outer_ = outer;
    begin_ = begin;
    if (affine_.scale) channel_rows_.start(begin, end);
  }

  // Of each element's channel, where a normalisation charges them.
  const Real* scale() const { return scale_; }
  const Real* shift() const { return shift_; }

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

  // Those that charge the neurons, likewise, until the next call.
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
      normalise_steps<G, true, Loop>(n, loop_rows<G, S>(from, n, {converted_, stride_}), scale_ + first, shift_ + first,
                                     loop_rows<G, S>(residual, n, {converted_ + kGroup * stride_, stride_}), to);
    } else if (once) {
      const auto y = loop_rows<1, S>(from, n, {converted_, stride_});
      normalise_steps<1, false, Loop>(n, y, scale_ + first, shift_ + first, {}, to);
    } else {
      const auto y = loop_rows<G, S>(from, n, {converted_, stride_});
      normalise_steps<G, false, Loop>(n, y, scale_ + first, shift_ + first, {}, to);
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
  Real *scale_, *shift_, *rows_, *converted_ = nullptr;
  int64_t outer_ = 0, begin_ = 0;
};

}  // namespace ckd::cpu::CKD_ISA
