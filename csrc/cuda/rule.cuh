// Which neuron a kernel runs: its constants, and its choices turned into types by uniform branches or by the kernel's
// own.
#pragma once
#include "ckd/neuron.h"
#include "extent.cuh"

namespace ckd::cuda {

// A tau that is a power of two: dividing by it and multiplying with its inverse give the same bits.
struct PowerOfTwo {
  float inverse;
};
CKD_DEVICE float operator/(float x, PowerOfTwo tau) { return x * tau.inverse; }

struct Rule {
  Constants<float> k;
  Charge charge;
  Reset reset;
  Through through;
  SurrogateKind surrogate;
  bool delayed;  // a spike's gradient comes from the next step's potential, too
  bool power_of_two;
  float tau_inverse;

  // `leak` overrides the neuron's; what lies there is not known here.
  Rule(const Neuron& n, const void* leak)
      : k(n),
        charge(n.charge),
        reset(n.reset),
        through(ckd::through(n)),
        surrogate(n.surrogate),
        delayed(n.drop_later != 0 && !n.detach_reset),
        power_of_two(n.charge != Charge::kDecay && !leak && is_power_of_two(static_cast<float>(n.leak))),
        tau_inverse(power_of_two ? 1.0f / static_cast<float>(n.leak) : 0.0f) {}

 private:
  // Far from the ends of the range, so that the inverse is one, too.
  static bool is_power_of_two(float tau) {
    int exponent;
    return tau > 0 && std::frexp(tau, &exponent) == 0.5f && exponent > -100 && exponent < 100;
  }
};

// The decay or tau as a call gives it: a constant, one value in memory, or one a channel.
struct LeakSource {
  const float* values;
  bool per_channel;
  float constant;
};

// The decay or tau of W neighbours: one for all of them, or one each.
template <int W, bool kEach>
struct Leak : ChannelValues<W, kEach> {
  using ChannelValues<W, kEach>::value;

  Leak() = default;
  CKD_DEVICE Leak(const LeakSource& source, const Extent& e, const Place& p) {
    if (source.per_channel) {
      static_cast<ChannelValues<W, kEach>&>(*this) = {source.values, e, p};
    } else {
      fill(source.values ? *source.values : source.constant, value);
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

// How a potential moves. kPowerOfTwo: tau is one.
template <Charge C, Reset R, bool kPowerOfTwo>
struct Dynamics {
  static constexpr Charge charge = C;
  static constexpr Reset reset = R;

  template <class LeakOf>
  static CKD_DEVICE float charged(float v, float x, const LeakOf& leak, int j, const Rule& rule) {
    if constexpr (kPowerOfTwo) return potential<C, R>(v, x, PowerOfTwo{rule.tau_inverse}, rule.k);
    return potential<C, R>(v, x, leak[j], rule.k);
  }
  template <class LeakOf>
  static CKD_DEVICE float input_gradient(float gh, const LeakOf& leak, int j, const Rule& rule) {
    if constexpr (kPowerOfTwo) return grad_input<C>(gh, PowerOfTwo{rule.tau_inverse});
    return grad_input<C>(gh, leak[j]);
  }
};

template <Through G>
struct ResetGradient {
  static constexpr Through through = G;
};

// A neuron that is known at run time: each function calls f with the type that stands for a choice.
struct AnyNeuron {
  template <class F>
  static CKD_DEVICE void dynamics(const Rule& rule, F&& f) {
    if (rule.reset == Reset::kHard) {
      charge<Reset::kHard>(rule, f);
    } else {
      charge<Reset::kSubtract>(rule, f);
    }
  }
  template <class F>
  static CKD_DEVICE void surrogate(const Rule& rule, F&& f) {
    with_surrogate(rule.surrogate, f);
  }
  template <class F>
  static CKD_DEVICE void reset_gradient(const Rule& rule, F&& f) {
    switch (rule.through) {
      case Through::kHard:
        return f(ResetGradient<Through::kHard>());
      case Through::kHardDetached:
        return f(ResetGradient<Through::kHardDetached>());
      case Through::kSubtract:
        return f(ResetGradient<Through::kSubtract>());
      case Through::kSubtractDetached:
        return f(ResetGradient<Through::kSubtractDetached>());
    }
  }

 private:
  template <Reset R, class F>
  static CKD_DEVICE void charge(const Rule& rule, F&& f) {
    switch (rule.charge) {
      case Charge::kDecay:
        return f(Dynamics<Charge::kDecay, R, false>());
      case Charge::kLeak:
        return rule.power_of_two ? f(Dynamics<Charge::kLeak, R, true>()) : f(Dynamics<Charge::kLeak, R, false>());
      case Charge::kLeakInput:
        return rule.power_of_two ? f(Dynamics<Charge::kLeakInput, R, true>())
                                 : f(Dynamics<Charge::kLeakInput, R, false>());
    }
  }
};

// A neuron that a kernel was compiled for.
template <Charge C, Through G, class Surrogate, SurrogateKind kKind, bool kPowerOfTwo>
struct OneNeuron {
  static bool is(const Rule& rule) {
    return rule.charge == C && rule.through == G && rule.surrogate == kKind && rule.power_of_two == kPowerOfTwo;
  }
  template <class F>
  static CKD_DEVICE void dynamics(const Rule&, F&& f) {
    constexpr bool kHard = G == Through::kHard || G == Through::kHardDetached;
    f(Dynamics<C, kHard ? Reset::kHard : Reset::kSubtract, kPowerOfTwo>());
  }
  template <class F>
  static CKD_DEVICE void surrogate(const Rule&, F&& f) {
    f(Surrogate());
  }
  template <class F>
  static CKD_DEVICE void reset_gradient(const Rule&, F&& f) {
    f(ResetGradient<G>());
  }
};

// The usual ones: that of the CKDSNN paper, and SpikingJelly's default.
using PaperNeuron = OneNeuron<Charge::kDecay, Through::kHard, Triangle, SurrogateKind::kTriangle, false>;
using SpikingJellyNeuron = OneNeuron<Charge::kLeakInput, Through::kHard, Sigmoid, SurrogateKind::kSigmoid, true>;

}  // namespace ckd::cuda
