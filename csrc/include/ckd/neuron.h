// One time step of a neuron, forward and backward, for one element.
// The order of operations is the numerics contract (no FMA, true division); every loop over time,
// on the CPU and on the GPU, is made of these.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ckd/params.h"
#include "ckd/platform.h"

namespace ckd {

// Constants of a neuron rounded once to the arithmetic's precision.
template <class Real>
struct Constants {
  using Bits = std::conditional_t<sizeof(Real) == 4, uint32_t, uint64_t>;
  Real threshold, fire_level, rest, drop_now, drop_later, c0, c1;
  // Whether gradients pass through the reset is data, so that both kinds of neuron share a loop: drop_now, or 0 where
  // the reset is detached, and all bits, or none.
  Real drop_back;
  Bits attached;
  CKD_FN explicit Constants(const Neuron& n)
      : threshold(Real(n.threshold)),
        fire_level(Real(n.fire_level)),
        rest(Real(n.rest)),
        drop_now(Real(n.drop_now)),
        drop_later(Real(n.drop_later)),
        c0(Real(n.c0)),
        c1(Real(n.c1)),
        drop_back(n.detach_reset ? Real(0) : drop_now),
        attached(n.detach_reset ? Bits(0) : ~Bits(0)) {}
};

// h[t] from v[t-1] and x[t]; `leak` is the decay or tau, a Real or what a Real can be multiplied with or divided by.
template <Charge C, class Real, class Leak>
CKD_FN Real charge(Real v, Real x, Leak leak, Real rest) {
  if constexpr (C == Charge::kDecay) return v * leak + x;
  if constexpr (C == Charge::kLeak) return v - (v - rest) / leak + x;
  if constexpr (C == Charge::kLeakInput) return v + (x - (v - rest)) / leak;
}

// The part of h[t] that a delayed reset takes away.
template <class Real>
CKD_FN Real delayed_drop(Real v, const Constants<Real>& k) {
  return v >= k.fire_level ? k.drop_later : Real(0);
}

template <Charge C, Reset R, class Real, class Leak>
CKD_FN Real potential(Real v, Real x, Leak leak, const Constants<Real>& k) {
  const Real h = charge<C>(v, x, leak, k.rest);
  return R == Reset::kHard ? h : h - delayed_drop(v, k);
}

// v[t] from h[t].
template <Reset R, class Real>
CKD_FN Real after_reset(Real h, const Constants<Real>& k) {
  const bool fires = h >= k.fire_level;
  if constexpr (R == Reset::kHard) return fires ? k.rest : h;
  return h - (fires ? k.drop_now : Real(0));
}

// x, or +0 where the reset is detached, also of what is not finite.
template <class Real>
CKD_FN Real where_attached(Real x, const Constants<Real>& k) {
  typename Constants<Real>::Bits bits;
  memcpy(&bits, &x, sizeof x);
  bits &= k.attached;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// gh = gs*sg + gv*R: dL/dv[t] reaches h[t] past the reset by R. What a detached reset takes away is added as 0, or
// multiplied with it, which leaves every bit as it is.
template <Reset R, class Real>
CKD_FN Real fire_backward(Real h, Real gs, Real gv, Real sg, const Constants<Real>& k) {
  if constexpr (R == Reset::kHard) {
    const Real kept = Real(1) - (h >= k.fire_level ? Real(1) : Real(0));
    return gs * sg + gv * (kept + where_attached((k.rest - h) * sg, k));
  }
  return gs * sg + gv * (Real(1) - sg * k.drop_back);
}

// Gradients of x[t] and v[t-1] from gh.
template <Charge C, class Real, class Leak>
CKD_FN Real grad_input(Real gh, Leak leak) {
  if constexpr (C == Charge::kLeakInput) return gh / leak;
  return gh;
}

template <Charge C, class Real>
CKD_FN Real grad_before(Real gh, Real leak) {
  if constexpr (C == Charge::kDecay) return gh * leak;
  return gh * (Real(1) - Real(1) / leak);
}

// Gradient of the decay or tau from gh, x[t] and v[t-1].
template <Charge C, class Real>
CKD_FN Real grad_leak(Real gh, Real v, Real x, Real leak, Real rest) {
  if constexpr (C == Charge::kDecay) return gh * v;
  if constexpr (C == Charge::kLeak) return gh * ((v - rest) / (leak * leak));
  if constexpr (C == Charge::kLeakInput) return gh * (((v - rest) - x) / (leak * leak));
}

}  // namespace ckd
