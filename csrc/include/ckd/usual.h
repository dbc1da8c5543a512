// The neurons that people train with, which have loops of their own where one loop a neuron pays; all others share
// general ones. Whether the reset is detached is data (neuron.h), and "integrate" is a decay of 1.
#pragma once
#include "ckd/params.h"

namespace ckd {

template <Charge C, Reset R, class S>
struct UsualNeuron {
  static constexpr Charge charge = C;
  static constexpr Reset reset = R;
  using Surrogate = S;
};

// X(charge, reset, surrogate). Each line costs some five seconds of compile time and 0.4 MB an instruction set.
#define CKD_USUAL_NEURONS(X)                        \
  X(Decay, Hard, Triangle)  /* the CKDSNN paper */  \
  X(Decay, Hard, Rectangle) /* STBP, tdBN */        \
  X(LeakInput, Hard, ATan)  /* SpikingJelly LIF */  \
  X(LeakInput, Hard, Sigmoid)                       \
  X(Leak, Hard, ATan)  /* with decay_input=False */ \
  X(Decay, Hard, ATan) /* SpikingJelly IF */        \
  X(Decay, Hard, Sigmoid)                           \
  X(Decay, Subtract, ATan) /* snnTorch Leaky */     \
  X(Decay, Subtract, FastSigmoid)

// Calls f(UsualNeuron) with the type of a neuron that is on the list; whether it is.
template <class F>
bool with_usual(const Neuron& n, const F& f) {
#define CKD_CASE(C, R, S)                                                                         \
  if (n.charge == Charge::k##C && n.reset == Reset::k##R && n.surrogate == SurrogateKind::k##S) { \
    f(UsualNeuron<Charge::k##C, Reset::k##R, S>());                                               \
    return true;                                                                                  \
  }
  CKD_USUAL_NEURONS(CKD_CASE)
#undef CKD_CASE
  return false;
}

inline bool is_usual(const Neuron& n) {
  return with_usual(n, [](auto) {});
}

}  // namespace ckd
