// The way back of a tile over rows of temporaries.
#pragma once
#include <algorithm>

#include "choose.h"
#include "spans.h"
#include "tile.h"

namespace ckd::cpu::CKD_ISA {

// One tile's way back through time, for every call: gradients are gathered from all that spikes went into, the
// steps run over rows of temporaries, and what comes out is spread over all that asked for a gradient.
template <class S>
class WideTile {
  using Raw = typename S::Raw;
  using Loop = typename InLoop<S>::type;

 public:
  using Real = typename S::Real;
  explicit WideTile(const LifBackward& call)
      : call_(call),
        shape_(call.shape),
        at_(call.shape),
        k_(call.neuron),
        recompute_(call.neuron),
        steps_(call.neuron),
        share_(Real(1.0 / static_cast<double>(call.shape.steps * call.shape.channels))) {
    if (!call.leak_per_channel) {
      fill_leak(call, leak_);
      keep(kTile);
    }
  }

  void run(int64_t outer, int64_t begin, int64_t end, double* leak_sums) {
    outer_ = outer;
    begin_ = begin;
    n_ = end - begin;
    if (call_.leak_per_channel) {
      spread_channels(shape_, begin, end, static_cast<const Real*>(call_.leak), leak_);
      keep(n_);
    }
    load_state(call_.grad_v, at_.state(outer, begin), Real(0), n_, gv_);
    if (is_delayed(call_.neuron)) fill_row(Real(0), n_, pending_);
    if (call_.grad_sam) {
      spread_locations(shape_, begin, end, call_.grad_sam + outer * shape_.rows * shape_.inner, share_, from_sam_);
    }
    if (shape_.repeated) fill_row(Real(0), n_, gx_sum_);
    if (leak_sums) fill_row(Real(0), n_, leak_sum_);
    for (int64_t chunk = checkpoint_count(shape_.steps); chunk >= 0; --chunk) {
      const int64_t first = chunk * kCheckpointEvery;
      const int64_t last = std::min<int64_t>(shape_.steps, first + kCheckpointEvery);
      recompute(first, last);
      in_groups_back(first, last, [&](int64_t t, auto group) {
        constexpr int G = decltype(group)::value;
        const Real* h = h_ + (t - first) * n_;
        recompute_.surrogate(k_, G * n_, h, sg_);
        step_back<G>(t, first, h);
      });
    }
    finish(leak_sums);
  }

 private:
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
    const int64_t at = at_.state(outer_, begin_);
    if (first == 0) {
      load_state(call_.v_init, at, k_.rest, n_, v_);
    } else {
      const int64_t chunk = first / kCheckpointEvery - 1;
      load_state(call_.checkpoints, chunk * shape_.outer * at_.frame + at, k_.rest, n_, v_);
    }
    if (call_.grad_leak || is_delayed(call_.neuron)) std::memcpy(start_, v_, n_ * sizeof(Real));
    const Raw* x = static_cast<const Raw*>(call_.x);
    in_groups(first, last, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      const auto rows = input_rows<G, S>(x, at_, shape_.repeated, outer_, t, begin_, n_, rows_);
      recompute_.steps.template get<G>()(k_, n_, rows, leak_, {v_, v_}, {h_ + (t - first) * n_, n_});
    });
  }

  template <int G>
  void step_back(int64_t t, int64_t first, const Real* h) {
    for (int g = 0; g < G; ++g) gather_spike_gradient(t + g, rows_ + g * n_);
    steps_.steps.template get<G>()(k_, n_, {h, n_}, {sg_, n_}, {rows_, n_}, {gv_, pending_, keep_}, {gh_, n_});
    for (int g = G - 1; g >= 0; --g) {
      Real* gh = gh_ + g * n_;
      if (call_.grad_leak) add_leak_gradient(t + g, first, gh);
      if (divides()) {
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gh[i] = gh[i] / leak_[i];
      }
      if (shape_.repeated) {
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gx_sum_[i] += gh[i];
      } else {
        store_row<S>(gh, static_cast<Raw*>(call_.grad_x) + at_.x(outer_, t + g, begin_), n_);
      }
    }
  }

  void gather_spike_gradient(int64_t t, Real* gs) {
    if (call_.grad_spikes) {
      load_row<S>(static_cast<const Raw*>(call_.grad_spikes) + at_.step(outer_, t, begin_), gs, n_);
    } else {
      fill_row(Real(0), n_, gs);
    }
    if (call_.grad_sam) {
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) gs[i] = gs[i] + from_sam_[i];
    }
  }

  void add_leak_gradient(int64_t t, int64_t first, const Real* gh) {
    const Real* before = start_;
    if (t > first) {
      recompute_.reset(k_, n_, h_ + (t - first - 1) * n_, v_);
      before = v_;
    }
    load_row<S>(static_cast<const Raw*>(call_.x) + at_.x(outer_, t, begin_), rows_, n_);
    recompute_.leak(k_, n_, gh, before, rows_, leak_, leak_sum_);
  }

  void finish(double* leak_sums) {
    if (shape_.repeated) store_row<S>(gx_sum_, static_cast<Raw*>(call_.grad_x) + at_.x(outer_, 0, begin_), n_);
    if (call_.grad_v_init) {
      if (is_delayed(call_.neuron)) {
        recompute_.surrogate(k_, n_, start_, sg_);
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gv_[i] = gv_[i] - pending_[i] * sg_[i];
      }
      Real* to = static_cast<Real*>(call_.grad_v_init) + at_.state(outer_, begin_);
      std::memcpy(to, gv_, n_ * sizeof(Real));
    }
    if (!leak_sums) return;
    if (call_.leak_per_channel) {
      gather_channels(shape_, begin_, begin_ + n_, leak_sum_, leak_sums);
    } else {
      for (int64_t i = 0; i < n_; ++i) *leak_sums += leak_sum_[i];
    }
  }

  const LifBackward& call_;
  const Shape& shape_;
  const Address at_;
  const Constants<Real> k_;
  const RecomputeSteps<Loop> recompute_;
  const BackwardSteps<Real> steps_;
  const Real share_;
  int64_t outer_ = 0, begin_ = 0, n_ = 0;
  alignas(64) Real h_[kCheckpointEvery * kTile];
  alignas(64) Real sg_[kGroup * kTile], rows_[kGroup * kTile], gh_[kGroup * kTile];
  alignas(64) Real v_[kTile], start_[kTile], leak_[kTile], keep_[kTile], gv_[kTile], pending_[kTile];
  alignas(64) Real from_sam_[kTile], gx_sum_[kTile], leak_sum_[kTile];
};

}  // namespace ckd::cpu::CKD_ISA
