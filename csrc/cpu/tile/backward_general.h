// The general path backward: a tile over rows of temporaries (loop/general.h).
#pragma once
#include "cpu/loop/general.h"
#include "cpu/tile/inputs.h"
#include "cpu/tile/outputs.h"
#include "cpu/tile/state.h"

namespace ckd::cpu::CKD_ISA {

// One tile backward through time, for every call: the steps run over rows of temporaries, and the gradients of the leak
// and of a delayed reset are gathered on the way.
template <class S>
class GeneralTile {
  using In = RealOf<S>;
  using Lanes = Single<In>;

 public:
  using Real = typename S::Real;
  GeneralTile(const LifBackward& call, int64_t length)
      : call_(call),
        shape_(call.shape),
        at_(call.shape),
        reach_(!std::is_same_v<S, In> || call.affine.scale ? reach_for(shape_.steps, true) : kNoReach),
        k_(call.neuron),
        loops_(call.neuron),
        scratch_(length,
                 kRows + LeakRow<Lanes>::kRows + Input<S, In>::kRows + GradSpikes<S>::kRows + GradInput<S>::kRows),
        input_(call, reach_, false, scratch_),
        grad_spikes_(call, reach_, scratch_),
        grad_input_(call, reach_, input_.terms(), false, scratch_),
        leak_(call, scratch_),
        h_(scratch_.rows(kCheckpointEvery)),
        sg_(scratch_.rows(kGroup)),
        v_(scratch_.rows(1)),
        start_(scratch_.rows(1)),
        keep_(scratch_.rows(1)),
        gv_(scratch_.rows(1)),
        pending_(scratch_.rows(1)),
        leak_sum_(scratch_.rows(1)) {
    keep(length);
  }

  void run(int64_t outer, int64_t begin, int64_t end, double* sums) {
    n_ = end - begin;
    state_ = at_.state(outer, begin);
    input_.start(outer, begin, end);
    grad_spikes_.start(outer, begin, end);
    grad_input_.start(outer, begin, end);
    if (leak_.start(begin, end)) keep(n_);
    load_state(call_.grad_v, state_, Real(0), n_, gv_);
    if (is_delayed(call_.neuron)) fill_row(Real(0), n_, pending_);
    if (call_.grad_leak) fill_row(Real(0), n_, leak_sum_);
    in_chunks_backward(shape_.steps, [&](int64_t first, int64_t last) {
      recompute(first, last);
      in_groups_backward(first, last, [&](int64_t t, auto group) { step_back<decltype(group)::value>(t, first); });
    });
    if (call_.grad_v_init) finish_state();
    grad_input_.finish(sums);
    if (!call_.grad_leak) return;
    if (call_.leak_per_channel) {
      gather_channels(shape_, begin, end, leak_sum_, sums);
    } else {
      *sums += sum_row(leak_sum_, n_);
    }
  }

  static int64_t length(const LifBackward& call) {
    return tile_for(call.shape.steps, call.affine.scale || call.dtype != DType::kFloat32);
  }

 private:
  static constexpr int64_t kRows = kCheckpointEvery + kGroup + 6;

  bool divides() const { return call_.neuron.charge == Charge::kLeakInput; }

  // dL/dv[t-1] over gh[t].
  void keep(int64_t n) {
    const Real* leak = leak_.row();
    if (call_.neuron.charge == Charge::kDecay) {
      std::memcpy(keep_, leak_.row(), n * sizeof(Real));
    } else {
      CKD_SIMD
      for (int64_t i = 0; i < n; ++i) keep_[i] = Real(1) - Real(1) / leak[i];
    }
  }

  void recompute(int64_t first, int64_t last) {
    load_state(chunk_start<Real>(call_, first), state_, k_.rest, n_, v_);
    if (call_.grad_leak || is_delayed(call_.neuron)) std::memcpy(start_, v_, n_ * sizeof(Real));
    in_groups(first, last, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      ForwardRows<In, In> rows{};
      rows.x = input_.template rows<G>(t, 0, n_);
      rows.to = as_raw(Rows<Real>{h_row(t, first), scratch_.stride()});
      rows.leaks = leak_.row(), rows.before = v_, rows.after = v_;
      loops_.recompute.template get<G>()(k_, n_, rows);
    });
  }

  Real* h_row(int64_t t, int64_t first) const { return h_ + (t - first) * scratch_.stride(); }

  template <int G>
  void step_back(int64_t t, int64_t first) {
    const int64_t stride = scratch_.stride();
    const Rows<const Real> h{h_row(t, first), stride};
    for (int g = 0; g < G; ++g) loops_.surrogate(k_, n_, h.first + g * stride, sg_ + g * stride);
    const Rows<Real> gx = grad_input_.template rows<G>(t, 0, n_);
    loops_.backward.template get<G>()(k_, n_, h, {sg_, stride}, grad_spikes_.template rows<G>(t, 0, n_),
                                      {gv_, pending_, keep_}, gx);
    for (int g = G - 1; g >= 0; --g) {
      Real* gh = gx.first + g * gx.stride;
      if (call_.grad_leak) add_leak_gradient(t + g, first, gh);
      if (divides()) {
        const Real* leak = leak_.row();
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gh[i] = gh[i] / leak[i];
      }
    }
    grad_input_.template take<G>(t, 0, n_, {gx.first, gx.stride});
    grad_input_.template send<G>(t);
  }

  void add_leak_gradient(int64_t t, int64_t first, const Real* gh) {
    const Real* before = start_;
    if (t > first) {
      loops_.reset(k_, n_, h_row(t - 1, first), v_);
      before = v_;
    }
    const auto* x = reinterpret_cast<const Real*>(input_.template rows<1>(t, 0, n_).first);
    loops_.leak(k_, n_, gh, before, x, leak_.row(), leak_sum_);
  }

  void finish_state() {
    if (is_delayed(call_.neuron)) {
      loops_.surrogate(k_, n_, start_, sg_);
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) gv_[i] = gv_[i] - pending_[i] * sg_[i];
    }
    std::memcpy(static_cast<Real*>(call_.grad_v_init) + state_, gv_, n_ * sizeof(Real));
  }

  const LifBackward& call_;
  const Shape& shape_;
  const Address at_;
  const Reach reach_;
  const Constants<Real> k_;
  const GeneralLoops<In> loops_;
  Scratch<Real> scratch_;
  Input<S, In> input_;
  GradSpikes<S> grad_spikes_;
  GradInput<S> grad_input_;
  LeakRow<Lanes> leak_;
  int64_t state_ = 0, n_ = 0;
  Real *h_, *sg_, *v_, *start_, *keep_, *gv_, *pending_, *leak_sum_;
};

}  // namespace ckd::cpu::CKD_ISA
