// What comes down to a tile's spikes: their own gradient, and that of the map that was made of them.
#pragma once
#include "cpu/memory/scratch.h"

namespace ckd::cpu::CKD_ISA {

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

template <class S>
class Upstream {
  using Raw = typename S::Raw;
  using Real = typename S::Real;
  using Loop = typename InLoop<S>::type;

 public:
  static constexpr int64_t kRows = 1 + (kConverts<S> ? 2 : 1) * kGroup;

  Upstream(const LifBackward& call, const Reach& reach, Scratch<Real>& scratch)
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
      spread_locations(shape, begin, end, call_.grad_sam + outer * shape.rows * shape.inner, share_, from_sam_);
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
