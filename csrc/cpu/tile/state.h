// What a tile carries through time: leaks, and v before every group of steps that it goes through backward. Rows of it
// lie in the order of a loop's lanes `L`.
#pragma once
#include "cpu/loop/forward.h"
#include "cpu/memory/scratch.h"

namespace ckd::cpu::CKD_ISA {

// The row of each element's decay or tau.
template <class L>
class LeakRow {
  using Real = typename L::Real;

 public:
  static constexpr int64_t kRows = L::kWidth;

  template <class Call>
  LeakRow(const Call& call, Scratch<Real>& scratch)
      : shape_(call.shape),
        values_(call.leak_per_channel ? static_cast<const Real*>(call.leak) : nullptr),
        half_(scratch.half()),
        row_(scratch.rows(1)),
        unordered_(L::kWidth == 1 ? row_ : scratch.rows(1)) {
    const Real* shared = static_cast<const Real*>(call.leak);
    if (!values_) fill_row(shared ? plain_nan(*shared) : Real(call.neuron.leak), scratch.stride(), row_);
  }

  // Goes to the elements [begin, end) of a frame; whether the row has changed.
  bool start(int64_t begin, int64_t end) {
    if (!values_) return false;
    broadcast_channels(shape_, begin, end, values_, unordered_);
    if constexpr (L::kWidth > 1) L::load_state(unordered_, end - begin, row_, half_);
    return true;
  }

  const Real* row() const { return row_; }

 private:
  const Shape& shape_;
  const Real* values_;
  const int64_t half_;
  Real *row_, *unordered_;
};

// v before a chunk's first step, in rows of a tensor [outer, frame]; null: at rest.
template <class Real>
inline const Real* chunk_start(const LifBackward& call, int64_t first) {
  if (first == 0) return static_cast<const Real*>(call.v_init);
  const int64_t chunk = first / kCheckpointEvery - 1;
  return static_cast<const Real*>(call.checkpoints) + chunk * call.shape.outer * call.shape.frame();
}

// Of float, v before every group of steps of a chunk, computed again from the chunk's checkpoint.
template <class L>
class GroupStates {
  using Storage = typename L::Storage;
  static constexpr int64_t kGroups = kCheckpointEvery / kGroup;

 public:
  // The row of rest, a copy of a checkpoint, and one for every group of a chunk but the first: 3 of 4 steps, or 2 and
  // one of 2 and one of 1.
  static constexpr int64_t kRows = 2 + kGroups;

  GroupStates(const LifBackward& call, Scratch<float>& scratch)
      : call_(call),
        k_(call.neuron),
        loops_(forward_loops<L, Source::kPlain, Start::kState, Keep::kNothing, Storage>(call.neuron)),
        stride_(scratch.stride()),
        half_(scratch.half()),
        rest_(scratch.rows(1)),
        copy_(scratch.rows(1)),
        rows_(scratch.rows(kGroups)) {
    fill_row(k_.rest, stride_, rest_);
  }

  // Calls f(t, integral_constant<G>, v before step t) for all groups of steps from last to first, of n elements whose
  // state lies at `state`; x_rows(t, integral_constant<G>) are the rows that charge them.
  template <class X, class F>
  void in_groups_backward(int64_t state, int64_t n, const float* leaks, const X& x_rows, const F& f) {
    in_chunks_backward(call_.shape.steps, [&](int64_t first, int64_t last) {
      const float* start = rest_;
      if (const float* from = chunk_start<float>(call_, first)) start = L::view_state(from + state, n, copy_, half_);
      recompute(first, last, start, n, leaks, x_rows);
      CKD_ISA::in_groups_backward(first, last, [&](int64_t t, auto group) {
        const int64_t done = t - first, place = done / kGroup + (group() == 1 && done % kGroup == 2 ? 1 : 0);
        f(t, group, place == 0 ? start : rows_ + (place - 1) * stride_);
      });
    });
  }

 private:
  // v before each further group of the chunk [first, last), a row each.
  template <class X>
  void recompute(int64_t first, int64_t last, const float* before, int64_t n, const float* leaks, const X& x_rows) {
    float* after = rows_;
    in_groups(first, last, [&](int64_t t, auto group) {
      if (t + group() == last) return;
      ForwardRows<Storage, Storage> rows{};
      rows.x = x_rows(t, group);
      rows.leaks = leaks, rows.before = before, rows.after = after, rows.half = half_;
      loops_.template get<decltype(group)::value>()(k_, n, rows);
      before = after;
      after += stride_;
    });
  }

  const LifBackward& call_;
  const Constants<float> k_;
  const ByGroup<ForwardLoop<Storage, Storage>> loops_;
  const int64_t stride_, half_;
  float *rest_, *copy_, *rows_;
};

}  // namespace ckd::cpu::CKD_ISA
