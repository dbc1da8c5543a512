// What a tile writes: rows of its outputs, and the gradient of what charged its neurons.
#pragma once
#include "cpu/loop/normalise.h"
#include "cpu/memory/scratch.h"
#include "cpu/memory/streaming.h"

namespace ckd::cpu::CKD_ISA {

// Rows of an output: where they lie in its tensor, or, of one that goes past the caches, rows that stay in them until
// they are sent.
template <class Raw>
class Output {
 public:
  static constexpr int64_t kRows = kGroup;  // of scratch memory

  // `bytes`: those of the tensor. `ahead`: how far ahead its lines are prefetched, as in Reach.
  template <class Real>
  Output(int64_t bytes, int64_t ahead, Scratch<Real>& scratch)
      : streamed_(is_streamed(bytes)),
        ahead_(streamed_ ? 0 : ahead),
        rows_(reinterpret_cast<Raw*>(scratch.rows(kGroup))),
        stride_(scratch.stride() * static_cast<int64_t>(sizeof(Real) / sizeof(Raw))) {}
  Output(const Output&) = delete;
  ~Output() {
    if (streamed_) stream_fence();
  }

  // Whether lines ahead are to be prefetched.
  bool prefetches() const { return ahead_ > 0; }

  // Where to write n elements, from element `first` on, of each of `count` rows that lie at `place`.
  Rows<Raw> rows(Rows<Raw> place, int64_t first, int64_t count, int64_t n) const {
    if (streamed_) return Rows<Raw>{rows_, stride_}.from(first);
    prefetch_rows(place.from(first), count, n, ahead_);
    return place.from(first);
  }

  // To be called when the rows are written, all n elements: in longer pieces they go faster.
  void send(Rows<Raw> place, int64_t count, int64_t n) const {
    if (!streamed_) return;
    for (int64_t row = 0; row < count; ++row) stream_row(rows_ + row * stride_, place.first + row * place.stride, n);
  }

 private:
  const bool streamed_;
  const int64_t ahead_;
  Raw* rows_;
  const int64_t stride_;
};

// Where the gradient of what charged a tile's neurons goes: to x as it is, or back through a normalisation.
template <class S>
class GradInput {
  using Raw = typename S::Raw;
  using Real = typename S::Real;
  using Loop = typename InLoop<S>::type;

 public:
  static constexpr int64_t kRows = 5 + (kConverts<S> ? 3 : 1) * kGroup + 2 * Output<Raw>::kRows;

  // `terms`: those of y, in rows that are filled by the time that `start` is called. `has_blocks`: whether terms are
  // those of blocks; only steps that do all themselves take them.
  GradInput(const LifBackward& call, const Reach& reach, const ChannelTerms<Real>& terms, bool has_blocks,
            Scratch<Real>& scratch)
      : call_(call),
        at_(call.shape),
        stride_(scratch.stride()),
        channel_rows_(call.shape, has_blocks),
        terms_{terms.scale, terms.shift, channel_rows_.add(call.mean, scratch.rows(1)),
               channel_rows_.add(call.offset, scratch.rows(1)), channel_rows_.add(call.slope, scratch.rows(1))},
        sum_(scratch.rows(1)),
        moment_(scratch.rows(1)),
        rows_(scratch.rows(kGroup)),
        x_output_(at_.x_elements() * kBytes, reach.to_write, scratch),
        residual_output_(at_.elements() * kBytes, reach.to_write, scratch) {
    if constexpr (kConverts<S>) converted_ = scratch.rows(2 * kGroup);
  }

  // `cleared`: whether the sums begin with what is in their rows.
  void start(int64_t outer, int64_t begin, int64_t end, bool cleared = true) {
    outer_ = outer;
    begin_ = begin;
    n_ = end - begin;
    if (call_.mean) channel_rows_.start(begin, end);
    if (!cleared) return;
    if (call_.sums) fill_row(Real(0), n_, moment_);
    if (call_.sums || call_.shape.repeated) fill_row(Real(0), n_, sum_);
  }

  // Where the steps write dL/dx of G steps from step t on, n elements from element `first` of the tile on, before
  // `take`.
  template <int G>
  Rows<Real> rows(int64_t t, int64_t first, int64_t n) {
    if (!is_direct()) return {rows_, stride_};
    const auto to = x_output_.rows(x_place(t), first, G, n);
    return {reinterpret_cast<Real*>(to.first), to.stride};
  }

  // Groups come from the last to the first.
  template <int G>
  void take(int64_t t, int64_t first, int64_t n, Rows<const Real> gx) {
    if (is_direct()) return;
    if (call_.grad_residual) store<G>(first, n, gx, residual_place(t), residual_output_);
    if (!call_.shape.repeated) return pass_on<G>(t, first, n, gx);
    for (int g = G - 1; g >= 0; --g) {
      const Real* row = gx.first + g * gx.stride;
      Real* sum = sum_ + first;
      CKD_SIMD
      for (int64_t i = 0; i < n; ++i) sum[i] += row[i];
    }
  }

  // To be called when all elements of the tile are taken, of G steps from step t on.
  template <int G>
  void send(int64_t t) const {
    if (!call_.sums && !call_.shape.repeated) x_output_.send(x_place(t), G, n_);
    if (call_.grad_residual) residual_output_.send(residual_place(t), G, n_);
  }

  // `sums`: [2, channels], if the call has them.
  void finish(double* sums) {
    if (call_.shape.repeated) {
      if (call_.sums) {
        load_row<S>(y_rows(0, 0).first, rows_, n_);
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) moment_[i] = sum_[i] * (rows_[i] - terms_.mean[i]);
      } else {
        pass_on<1>(0, 0, n_, {sum_, 0});
        x_output_.send(x_place(0), 1, n_);
      }
    }
    if (!call_.sums) return;
    gather_channels(call_.shape, begin_, begin_ + n_, sum_, sums, moment_, sums + call_.shape.channels);
  }

  // For steps that do themselves what `rows` and `take` are for: what they apply, and what they add to.
  ChannelTerms<Real> terms(int64_t first = 0) const {
    return {terms_.scale + first, terms_.shift + first, terms_.mean + first, terms_.offset + first,
            terms_.slope + first};
  }
  Real* sum() const { return sum_; }
  Real* moment() const { return moment_; }
  const Output<Raw>& x_output() const { return x_output_; }
  const Output<Raw>& residual_output() const { return residual_output_; }
  // Where dL/dx and the residual's gradient go, from a step on.
  Rows<Raw> x_place(int64_t t) const { return {static_cast<Raw*>(call_.grad_x) + at_.x(outer_, t, begin_), at_.frame}; }
  Rows<Raw> residual_place(int64_t t) const {
    return {static_cast<Raw*>(call_.grad_residual) + at_.step(outer_, t, begin_), at_.frame};
  }

 private:
  static constexpr int64_t kBytes = sizeof(Raw);

  // Whether the steps write dL/dx where it belongs.
  bool is_direct() const { return std::is_same_v<RealOf<S>, S> && !call_.affine.scale && !call_.shape.repeated; }

  Rows<const Raw> y_rows(int64_t t, int64_t first) const {
    return {static_cast<const Raw*>(call_.x) + at_.x(outer_, t, begin_ + first), at_.frame};
  }

  template <int G>
  void store(int64_t first, int64_t n, Rows<const Real> from, Rows<Raw> place, const Output<Raw>& output) {
    const Rows<Raw> to = output.rows(place, first, G, n);
    for (int g = 0; g < G; ++g) store_row<S>(from.first + g * from.stride, to.first + g * to.stride, n);
  }

  template <int G>
  void pass_on(int64_t t, int64_t first, int64_t n, Rows<const Real> gx) {
    if (!call_.affine.scale) return store<G>(first, n, gx, x_place(t), x_output_);
    const auto y = loop_rows<G, S>(y_rows(t, first), n, {converted_, stride_});
    if (call_.sums) return reduce_steps<G, Loop>(n, gx, y, terms_.mean + first, sum_ + first, moment_ + first);
    Rows<typename Loop::Raw> gy{};
    if constexpr (kConverts<S>) {
      gy = {reinterpret_cast<typename Loop::Raw*>(converted_) + kGroup * stride_, stride_};
    } else {
      gy = x_output_.rows(x_place(t), first, G, n);
    }
    if (call_.mean) {
      apply_steps<G, true, Loop>(n, gx, y, terms(first), gy);
    } else {
      apply_steps<G, false, Loop>(n, gx, y, terms(first), gy);
    }
    if constexpr (kConverts<S>) {
      store<G>(first, n, {converted_ + kGroup * stride_, stride_}, x_place(t), x_output_);
    }
  }

  const LifBackward& call_;
  const Address at_;
  const int64_t stride_;
  ChannelRows<Real> channel_rows_;
  const ChannelTerms<Real> terms_;
  Real *sum_, *moment_, *rows_, *converted_ = nullptr;
  const Output<Raw> x_output_, residual_output_;
  int64_t outer_ = 0, begin_ = 0, n_ = 0;
};

}  // namespace ckd::cpu::CKD_ISA
