// Rows of temporaries that a tile has, and how they are filled.
#pragma once
#include <memory>

#include "cpu/memory/channels.h"
#include "cpu/memory/rows.h"

namespace ckd::cpu::CKD_ISA {

template <class Real>
inline void load_state(const void* from, int64_t at, Real rest, int64_t n, Real* v) {
  if (from) {
    std::memcpy(v, static_cast<const Real*>(from) + at, n * sizeof(Real));
  } else {
    fill_row(rest, n, v);
  }
}

// Rows of temporaries of one tile, all of one length. They are packed: whole pages apart, the rows of a short tile
// would compete for the same few sets of the cache, and stores would be taken for those that a load has to wait for.
template <class Real>
class Scratch {
 public:
  Scratch(int64_t length, int64_t rows)
      : stride_((length + 15) / 16 * 16 + 16),
        memory_(std::make_unique_for_overwrite<Real[]>(stride_ * rows + 16)),
        next_(memory_.get()) {
    const auto past = reinterpret_cast<uintptr_t>(next_) % 64;
    if (past != 0) next_ += (64 - past) / sizeof(Real);
  }

  int64_t stride() const { return stride_; }
  int64_t half() const { return stride_ / 2; }

  Real* rows(int64_t count) {
    Real* first = next_;
    next_ += count * stride_;
    return first;
  }

 private:
  int64_t stride_;
  std::unique_ptr<Real[]> memory_;
  Real* next_;
};

// Rows of a storage type as a vector loop reads them: where they are, or converted.
template <int G, class S, class Loop = typename InLoop<S>::type>
inline Rows<const typename Loop::Raw> loop_rows(Rows<const typename S::Raw> from, int64_t n,
                                                Rows<typename S::Real> converted) {
  if constexpr (!kConverts<S>) {
    return from;
  } else {
    for (int g = 0; g < (from.stride == 0 ? 1 : G); ++g)
      S::load(from.first + g * from.stride, converted.first + g * converted.stride, n);
    return {reinterpret_cast<const typename Loop::Raw*>(converted.first), from.stride == 0 ? 0 : converted.stride};
  }
}

}  // namespace ckd::cpu::CKD_ISA
