// A tile backward in the loops that do all at once (loop/backward.h).
#pragma once
#include "cpu/loop/backward.h"
#include "cpu/tile/inputs.h"
#include "cpu/tile/outputs.h"
#include "cpu/tile/state.h"

namespace ckd::cpu::CKD_ISA {

// Which calls they serve.
inline bool is_fused(const LifBackward& call) { return !call.grad_leak && !is_delayed(call.neuron); }

// Whether nothing comes from before or after the steps of a call, and nothing that goes there is wanted.
inline bool is_from_rest(const LifBackward& call) {
  return !call.v_init && !call.leak && !call.grad_v && !call.grad_v_init;
}

template <class S>
class FusedTile {
  using Raw = typename S::Raw;
  using Lanes = Single<Float32>;

 public:
  using Real = float;
  FusedTile(const LifBackward& call, int64_t length)
      : call_(call),
        at_(call.shape),
        // Many steps are gone through twice: what was prefetched the first time would be in vain the second time.
        reach_(call.shape.steps > kGroup && !kConverts<S> && !call.affine.scale ? kNoReach
                                                                                : reach_for(call.shape.steps, true)),
        k_(call.neuron),
        loops_(backward_loops(call.neuron)),
        bn_loop_(backward_bn_loop<typename InLoop<S>::type>(call, call.shape.steps == kGroup && is_from_rest(call))),
        is_one_call_(bn_loop_ && !kConverts<S> && call.shape.steps == kGroup && !call.grad_v),
        has_blocks_(is_one_call_ && has_channel_blocks(call.shape)),
        scratch_(length, 2 + LeakRow<Lanes>::kRows + GroupStates<Lanes>::kRows + Input<S, Float32>::kRows +
                             GradSpikes<S>::kRows + GradInput<S>::kRows),
        input_(call, reach_, has_blocks_, scratch_),
        grad_spikes_(call, reach_, scratch_),
        grad_input_(call, reach_, input_.terms(), has_blocks_, scratch_),
        leak_(call, scratch_),
        states_(call, scratch_),
        zeros_(scratch_.rows(1)),
        gv_(scratch_.rows(1)) {
    fill_row(Real(0), length, zeros_);
  }

  void run(int64_t outer, int64_t begin, int64_t end, double* sums) {
    const int64_t n = end - begin, state = at_.state(outer, begin);
    input_.start(outer, begin, end);
    grad_spikes_.start(outer, begin, end);
    grad_input_.start(outer, begin, end, !is_one_call_);
    leak_.start(begin, end);
    if (!is_one_call_) load_state(call_.grad_v, state, Real(0), n, gv_);
    const auto x_rows = [&](int64_t t, auto group) { return input_.template rows<decltype(group)::value>(t, 0, n); };
    states_.in_groups_backward(state, n, leak_.row(), x_rows, [&](int64_t t, auto group, const Real* v) {
      constexpr int G = decltype(group)::value;
      if constexpr (G == kGroup && !kConverts<S>) {
        if (bn_loop_) {
          bn_loop_(k_, n, bn_rows(outer, t, begin, v));
          return grad_input_.template send<G>(t);
        }
      }
      in_blocks(n, reach_.block / sizeof(Raw), [&](int64_t at, int64_t length) {
        BackwardRows<Float32> rows{};
        const auto gx = grad_input_.template rows<G>(t, at, length);
        rows.x = input_.template rows<G>(t, at, length);
        rows.gs = as_raw(grad_spikes_.template rows<G>(t, at, length));
        rows.gx = as_raw(gx);
        rows.leaks = leak_.row() + at, rows.v = v + at, rows.gv = {gv_ + at, gv_ + at};
        loops_.template get<G>()(k_, length, rows);
        grad_input_.template take<G>(t, at, length, {gx.first, gx.stride});
      });
      grad_input_.template send<G>(t);
    });
    if (call_.grad_v_init) std::memcpy(static_cast<Real*>(call_.grad_v_init) + state, gv_, n * sizeof(Real));
    grad_input_.finish(sums);
  }

  static int64_t length(const LifBackward& call) {
    if (!kConverts<S> && call.affine.scale && call.shape.steps == kGroup) return 512;
    return tile_for(call.shape.steps, kConverts<S> || call.affine.scale);
  }

 private:
  BackwardRows<S> bn_rows(int64_t outer, int64_t t, int64_t begin, const Real* v) const {
    const auto in = [&](const void* rows) {
      return Rows<const Raw>{rows ? static_cast<const Raw*>(rows) + at_.step(outer, t, begin) : nullptr, at_.frame};
    };
    const auto carry = [&](Real* row) { return Carry{is_one_call_ ? zeros_ : row, row}; };
    // The loop itself prefetches what lies ahead, hence rows of no elements.
    const auto& x_output = grad_input_.x_output();
    BackwardRows<S> rows{};
    rows.x = in(call_.x), rows.residual = in(call_.affine.residual), rows.gs = in(call_.grad_spikes);
    rows.terms = grad_input_.terms();
    rows.gx = x_output.rows(grad_input_.x_place(t), 0, kGroup, 0);
    rows.grad_residual = grad_input_.residual_output().rows(grad_input_.residual_place(t), 0, kGroup, 0);
    rows.sum = carry(grad_input_.sum()), rows.moment = carry(grad_input_.moment()), rows.gv = carry(gv_);
    rows.leaks = leak_.row(), rows.v = v, rows.leak = Real(call_.neuron.leak);
    rows.has_blocks = has_blocks_;
    rows.prefetches_reads = reach_.to_read > 0;
    rows.prefetches_writes = x_output.prefetches();
    return rows;
  }

  const LifBackward& call_;
  const Address at_;
  const Reach reach_;
  const Constants<Real> k_;
  const ByGroup<BackwardLoop<Float32>> loops_;
  const BackwardLoop<typename InLoop<S>::type> bn_loop_;  // null: none serves the call
  // Whether one call of it is all, with nothing that comes from later steps.
  const bool is_one_call_;
  // Whether it is given the values of channels for blocks.
  const bool has_blocks_;
  Scratch<Real> scratch_;
  Input<S, Float32> input_;
  GradSpikes<S> grad_spikes_;
  GradInput<S> grad_input_;
  LeakRow<Lanes> leak_;
  GroupStates<Lanes> states_;
  Real *zeros_, *gv_;
};

// Of bfloat16 whose rows are read and written in place, in pairs: nothing but the loops touches them.
class PairTile {
 public:
  using Real = float;

  // Which of the calls that the loops serve.
  static bool serves(const LifBackward& call) {
    return is_usual(call.neuron) && call.grad_spikes && !call.affine.scale && !call.shape.repeated &&
           (!call.grad_sam || is_whole(call));
  }

  PairTile(const LifBackward& call, int64_t length)
      : call_(call),
        at_(call.shape),
        is_whole_(is_whole(call)),
        k_(call.neuron),
        loops_(backward_pair_loops(call.neuron, !is_whole_      ? Part::kMany
                                                : call.grad_sam ? Part::kWholeWithMap
                                                                : Part::kWhole)),
        scratch_(length, 1 + LeakRow<Pair>::kRows + GroupStates<Pair>::kRows + GradSpikes<BFloat16>::kRows +
                             Output<uint16_t>::kRows),
        grad_spikes_(call, kNoReach, scratch_),
        // Bound by arithmetic: nothing is prefetched.
        output_(at_.elements() * static_cast<int64_t>(sizeof(uint16_t)), 0, scratch_),
        leak_(call, scratch_),
        states_(call, scratch_),
        gv_(scratch_.rows(1)) {}

  void run(int64_t outer, int64_t begin, int64_t end, double*) {
    const int64_t n = end - begin, state = at_.state(outer, begin), half = scratch_.half();
    if (call_.grad_sam) grad_spikes_.start(outer, begin, end);
    leak_.start(begin, end);
    if (call_.grad_v) {
      Pair::load_state(static_cast<const float*>(call_.grad_v) + state, n, gv_, half);
    } else if (!is_whole_) {
      fill_row(0.0f, scratch_.stride(), gv_);
    }
    const auto in = [&](const void* from, int64_t t) {
      return Rows<const uint16_t>{static_cast<const uint16_t*>(from) + at_.step(outer, t, begin), at_.frame};
    };
    const auto x_rows = [&](int64_t t, auto) { return in(call_.x, t); };
    states_.in_groups_backward(state, n, leak_.row(), x_rows, [&](int64_t t, auto group, const float* v) {
      constexpr int G = decltype(group)::value;
      const Rows<uint16_t> to{static_cast<uint16_t*>(call_.grad_x) + at_.step(outer, t, begin), at_.frame};
      BackwardRows<BFloat16> rows{};
      rows.x = in(call_.x, t), rows.gs = in(call_.grad_spikes, t), rows.gx = output_.rows(to, 0, G, n);
      rows.from_map = grad_spikes_.from_sam();
      rows.leaks = leak_.row(), rows.v = v, rows.gv = {gv_, gv_}, rows.half = half;
      rows.leak = float(call_.neuron.leak);
      loops_.get<G>()(k_, n, rows);
      output_.send(to, G, n);
    });
    if (call_.grad_v_init) Pair::store_state(gv_, half, n, static_cast<float*>(call_.grad_v_init) + state);
  }

  // Bound by arithmetic, which a longer row lets run on.
  static int64_t length(const LifBackward&) { return 1024; }

 private:
  // Whether one call of a loop is all.
  static bool is_whole(const LifBackward& call) { return is_one_group(call.shape.steps) && is_from_rest(call); }

  const LifBackward& call_;
  const Address at_;
  const bool is_whole_;
  const Constants<float> k_;
  const ByGroup<BackwardLoop<BFloat16>> loops_;
  Scratch<float> scratch_;
  GradSpikes<BFloat16> grad_spikes_;
  const Output<uint16_t> output_;
  LeakRow<Pair> leak_;
  GroupStates<Pair> states_;
  float* gv_;
};

}  // namespace ckd::cpu::CKD_ISA
