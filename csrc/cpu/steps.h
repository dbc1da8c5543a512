// One time step of a tile: rows of the arithmetic's type, every loop a vector loop.
#pragma once
#include "ckd/neuron.h"
#include "storage.h"

namespace ckd::cpu::CKD_ISA {

// Advances v from t-1 to t and writes the spikes of step t.
template <Charge C, Reset R, class Real, class Raw>
void step_forward(const Constants<Real> k, const Raw one, int64_t n, const Real* __restrict x,
                  const Real* __restrict leak, Real* __restrict v, Raw* __restrict spikes) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const Real h = potential<C, R>(v[i], x[i], leak[i], k);
    spikes[i] = h >= k.fire_level ? one : Raw(0);
    v[i] = after_reset<R>(h, k);
  }
}

// The same, keeping h[t] instead of spikes.
template <Charge C, Reset R, class Real>
void step_recompute(const Constants<Real> k, int64_t n, const Real* __restrict x, const Real* __restrict leak,
                    Real* __restrict v, Real* __restrict h_out) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    const Real h = potential<C, R>(v[i], x[i], leak[i], k);
    h_out[i] = h;
    v[i] = after_reset<R>(h, k);
  }
}

// sg(h - threshold).
template <class S, class Real>
void surrogate_row(const Constants<Real> k, int64_t n, const Real* __restrict h, Real* __restrict sg) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) sg[i] = S::derivative(h[i] - k.threshold, k.c0, k.c1);
}

// gh[t] from dL/ds[t] and the carry dL/dv[t], which becomes dL/dv[t-1] = gh*keep.
template <Through G, class Real>
void step_backward(const Constants<Real> k, int64_t n, const Real* __restrict h, const Real* __restrict sg,
                   const Real* __restrict gs, const Real* __restrict keep, Real* __restrict gv, Real* __restrict gh) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    gh[i] = fire_backward<G>(h[i], gs[i], gv[i], sg[i], k);
    gv[i] = gh[i] * keep[i];
  }
}

// sum += the elementwise gradient of the leak; `before` is v[t-1].
template <Charge C, class Real>
void leak_row(const Constants<Real> k, int64_t n, const Real* __restrict gh, const Real* __restrict before,
              const Real* __restrict x, const Real* __restrict leak, Real* __restrict sum) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) sum[i] += grad_leak<C>(gh[i], before[i], x[i], leak[i], k.rest);
}

template <Reset R, class Real>
void reset_row(const Constants<Real> k, int64_t n, const Real* __restrict h, Real* __restrict v) {
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) v[i] = after_reset<R>(h[i], k);
}

// The steps of one neuron: its charge, reset and surrogate turned from values into functions, once a call.
template <class Real, class Raw>
struct Steps {
  void (*forward)(Constants<Real>, Raw, int64_t, const Real*, const Real*, Real*, Raw*);
  void (*recompute)(Constants<Real>, int64_t, const Real*, const Real*, Real*, Real*);
  void (*surrogate)(Constants<Real>, int64_t, const Real*, Real*);
  void (*backward)(Constants<Real>, int64_t, const Real*, const Real*, const Real*, const Real*, Real*, Real*);
  void (*leak)(Constants<Real>, int64_t, const Real*, const Real*, const Real*, const Real*, Real*);
  void (*reset)(Constants<Real>, int64_t, const Real*, Real*);

  explicit Steps(const Neuron& neuron) {
    switch (neuron.charge) {
      case Charge::kDecay: charged<Charge::kDecay>(neuron); break;
      case Charge::kLeak: charged<Charge::kLeak>(neuron); break;
      case Charge::kLeakInput: charged<Charge::kLeakInput>(neuron); break;
    }
    with_surrogate(neuron.surrogate, [&](auto s) { surrogate = surrogate_row<decltype(s), Real>; });
    switch (through(neuron)) {
      case Through::kHard: backward = step_backward<Through::kHard, Real>; break;
      case Through::kHardDetached: backward = step_backward<Through::kHardDetached, Real>; break;
      case Through::kSubtract: backward = step_backward<Through::kSubtract, Real>; break;
      case Through::kSubtractDetached: backward = step_backward<Through::kSubtractDetached, Real>; break;
    }
  }

 private:
  template <Charge C>
  void charged(const Neuron& neuron) {
    leak = leak_row<C, Real>;
    if (neuron.reset == Reset::kHard) {
      resets<C, Reset::kHard>();
    } else {
      resets<C, Reset::kSubtract>();
    }
  }
  template <Charge C, Reset R>
  void resets() {
    forward = step_forward<C, R, Real, Raw>;
    recompute = step_recompute<C, R, Real>;
    reset = reset_row<R, Real>;
  }
};

}  // namespace ckd::cpu::CKD_ISA
