// Which neuron a kernel runs: constants, and run-time choices turned into types by uniform branches.
#pragma once
#include "ckd/neuron.h"
#include "extent.cuh"

namespace ckd::cuda {

struct Rule {
  Constants<float> k;
  Charge charge;
  Reset reset;
  Through through;
  SurrogateKind surrogate;
  bool delayed;  // a spike's gradient comes from the next step's potential, too

  explicit Rule(const Neuron& n)
      : k(n),
        charge(n.charge),
        reset(n.reset),
        through(ckd::through(n)),
        surrogate(n.surrogate),
        delayed(n.drop_later != 0 && !n.detach_reset) {}
};

template <Charge C, Reset R>
struct Dynamics {
  static constexpr Charge charge = C;
  static constexpr Reset reset = R;
};

// Calls f with the Dynamics of a rule.
template <class F>
CKD_DEVICE void with_dynamics(const Rule& rule, F&& f) {
  if (rule.reset == Reset::kHard) {
    if (rule.charge == Charge::kDecay) {
      f(Dynamics<Charge::kDecay, Reset::kHard>());
    } else if (rule.charge == Charge::kLeak) {
      f(Dynamics<Charge::kLeak, Reset::kHard>());
    } else {
      f(Dynamics<Charge::kLeakInput, Reset::kHard>());
    }
  } else {
    if (rule.charge == Charge::kDecay) {
      f(Dynamics<Charge::kDecay, Reset::kSubtract>());
    } else if (rule.charge == Charge::kLeak) {
      f(Dynamics<Charge::kLeak, Reset::kSubtract>());
    } else {
      f(Dynamics<Charge::kLeakInput, Reset::kSubtract>());
    }
  }
}

// The decay or tau as a call gives it: a constant, one value in memory, or one a channel.
struct LeakSource {
  const float* values;
  bool per_channel;
  float constant;
};

// The decay or tau of W neighbours: one for all of them, or one each.
template <int W, bool kEach>
struct Leak {
  float value[kEach ? W : 1];

  CKD_DEVICE float operator[](int j) const { return value[kEach ? j : 0]; }

  Leak() = default;
  CKD_DEVICE Leak(const LeakSource& source, const Extent& e, const Place& p) {
    if (!source.per_channel) {
      fill(source.values ? *source.values : source.constant, value);
      return;
    }
    Walk walk(e, p);
#pragma unroll
    for (int j = 0; j < (kEach ? W : 1); ++j) {
      value[j] = source.values[walk.channel];
      if constexpr (kEach) walk.next(e);
    }
  }

  // dL/dv[t-1] over gh[t].
  CKD_DEVICE Leak keep(Charge charge) const {
    Leak kept;
#pragma unroll
    for (int j = 0; j < (kEach ? W : 1); ++j) {
      kept.value[j] = charge == Charge::kDecay ? grad_before<Charge::kDecay>(1.0f, value[j])
                                               : grad_before<Charge::kLeak>(1.0f, value[j]);
    }
    return kept;
  }
};

}  // namespace ckd::cuda
