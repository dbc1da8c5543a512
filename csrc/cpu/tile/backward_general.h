// The way back of a tile over rows of temporaries.
#pragma once
#include <algorithm>

#include "cpu/loop/select.h"
#include "cpu/tile/grad_input.h"
#include "cpu/tile/grad_spikes.h"
#include "cpu/tile/input.h"

namespace ckd::cpu::CKD_ISA {

// One tile's way back through time, for every call: the steps run over rows of temporaries, and the gradients of the
// leak and of a delayed reset are gathered on the way.
template <class S>
class WideTile {
  using In = RealOf<S>;

 public:
  using Real = typename S::Real;
  WideTile(const LifBackward& call, int64_t length)
      : call_(call),
        shape_(call.shape),
        at_(call.shape),
        reach_(!std::is_same_v<S, In> || call.affine.scale ? reach_for(shape_.steps, true) : kNoReach),
        k_(call.neuron),
        recompute_(call.neuron),
        steps_(call.neuron),
        scratch_(length, kRows + Input<S, In>::kRows + Upstream<S>::kRows + GradInput<S>::kRows),
        input_(call, reach_, false, scratch_),
        upstream_(call, reach_, scratch_),
        grad_input_(call, reach_, input_.scale(), false, scratch_),
        h_(scratch_.rows(kCheckpointEvery)),
        sg_(scratch_.rows(kGroup)),
        v_(scratch_.rows(1)),
        start_(scratch_.rows(1)),
        leak_(scratch_.rows(1)),
        keep_(scratch_.rows(1)),
        gv_(scratch_.rows(1)),
        pending_(scratch_.rows(1)),
        leak_sum_(scratch_.rows(1)) {
    if (!call.leak_per_channel) {
      fill_leak(call, length, leak_);
      keep(length);
    }
  }

  void run(int64_t outer, int64_t begin, int64_t end, double* sums) {
    n_ = end - begin;
    state_ = at_.state(outer, begin);
    input_.start(outer, begin, end);
    upstream_.start(outer, begin, end);
    grad_input_.start(outer, begin, end);
    if (call_.leak_per_channel) {
      spread_channels(shape_, begin, end, static_cast<const Real*>(call_.leak), leak_);
      keep(n_);
    }
    load_state(call_.grad_v, state_, Real(0), n_, gv_);
    if (is_delayed(call_.neuron)) fill_row(Real(0), n_, pending_);
    if (call_.grad_leak) fill_row(Real(0), n_, leak_sum_);
    for (int64_t chunk = checkpoint_count(shape_.steps); chunk >= 0; --chunk) {
      const int64_t first = chunk * kCheckpointEvery;
      const int64_t last = std::min<int64_t>(shape_.steps, first + kCheckpointEvery);
      recompute(first, last);
      in_groups_back(first, last, [&](int64_t t, auto group) { step_back<decltype(group)::value>(t, first); });
    }
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
  static constexpr int64_t kRows = kCheckpointEvery + kGroup + 7;

  bool divides() const { return call_.neuron.charge == Charge::kLeakInput; }

  // dL/dv[t-1] over gh[t].
  void keep(int64_t n) {
    if (call_.neuron.charge == Charge::kDecay) {
      std::memcpy(keep_, leak_, n * sizeof(Real));
    } else {
      CKD_SIMD
      for (int64_t i = 0; i < n; ++i) keep_[i] = Real(1) - Real(1) / leak_[i];
    }
  }

  void recompute(int64_t first, int64_t last) {
    if (first == 0) {
      load_state(call_.v_init, state_, k_.rest, n_, v_);
    } else {
      const int64_t chunk = first / kCheckpointEvery - 1;
      load_state(call_.checkpoints, chunk * shape_.outer * at_.frame + state_, k_.rest, n_, v_);
    }
    if (call_.grad_leak || is_delayed(call_.neuron)) std::memcpy(start_, v_, n_ * sizeof(Real));
    in_groups(first, last, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      recompute_.steps.template get<G>()(k_, n_, input_.template rows<G>(t, 0, n_), leak_, {v_, v_},
                                         {h_row(t, first), scratch_.stride()});
    });
  }

  Real* h_row(int64_t t, int64_t first) const { return h_ + (t - first) * scratch_.stride(); }

  template <int G>
  void step_back(int64_t t, int64_t first) {
    const int64_t stride = scratch_.stride();
    const Rows<const Real> h{h_row(t, first), stride};
    for (int g = 0; g < G; ++g) recompute_.surrogate(k_, n_, h.first + g * stride, sg_ + g * stride);
    const Rows<Real> gx = grad_input_.template rows<G>(t, 0, n_);
    steps_.steps.template get<G>()(k_, n_, h, {sg_, stride}, upstream_.template rows<G>(t, 0, n_),
                                   {gv_, pending_, keep_}, gx);
    for (int g = G - 1; g >= 0; --g) {
      Real* gh = gx.first + g * gx.stride;
      if (call_.grad_leak) add_leak_gradient(t + g, first, gh);
      if (divides()) {
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gh[i] = gh[i] / leak_[i];
      }
    }
    grad_input_.template take<G>(t, 0, n_, {gx.first, gx.stride});
    grad_input_.template send<G>(t);
  }

  void add_leak_gradient(int64_t t, int64_t first, const Real* gh) {
    const Real* before = start_;
    if (t > first) {
      recompute_.reset(k_, n_, h_row(t - 1, first), v_);
      before = v_;
    }
    const auto* x = reinterpret_cast<const Real*>(input_.template rows<1>(t, 0, n_).first);
    recompute_.leak(k_, n_, gh, before, x, leak_, leak_sum_);
  }

  void finish_state() {
    if (is_delayed(call_.neuron)) {
      recompute_.surrogate(k_, n_, start_, sg_);
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
  const RecomputeSteps<In> recompute_;
  const BackwardSteps<Real> steps_;
  Scratch<Real> scratch_;
  Input<S, In> input_;
  Upstream<S> upstream_;
  GradInput<S> grad_input_;
  int64_t state_ = 0, n_ = 0;
  Real *h_, *sg_, *v_, *start_, *leak_, *keep_, *gv_, *pending_, *leak_sum_;
};

}  // namespace ckd::cpu::CKD_ISA
