// How what a tile's steps write gets to memory.
#pragma once
#include "cpu/memory/scratch.h"
#include "cpu/memory/streaming.h"

namespace ckd::cpu::CKD_ISA {

// Rows of an output: where they lie in its tensor, or, of one that goes past the caches, rows that stay in them until
// they are sent.
template <class Raw>
class Output {
 public:
  static constexpr int64_t kRows = kGroup;  // of scratch memory

  // `bytes`: those of the tensor. `ahead`: how far ahead its lines are asked for, as in Reach.
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

  // Whether lines ahead are to be asked for.
  bool asks() const { return ahead_ > 0; }

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

}  // namespace ckd::cpu::CKD_ISA
