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

inline bool is_moderate(float x) { return x >= 0x1p-60f && x <= 0x1p60f; }
inline bool is_moderate_power_of_two(float x) {
  int exponent;
  return is_moderate(x) && std::frexp(x, &exponent) == 0.5f;
}

struct Rule {
  Constants<float> k;
  Charge charge;
  Reset reset;
  SurrogateKind surrogate;
  bool delayed;                   // a spike's gradient comes from the next step's potential, too
  bool power_of_two, exact_leak;  // tau, and a decay of at most 1
  float tau_inverse;
  float input_share;  // dL/dx over dL/dh, where tau is a power of two

  // `leak` overrides the neuron's; what lies there is not known here.
  Rule(const Neuron& n, const void* leak)
      : k(n),
        charge(n.charge),
        reset(n.reset),
        surrogate(n.surrogate),
        delayed(n.drop_later != 0 && !n.detach_reset),
        power_of_two(n.charge != Charge::kDecay && !leak && is_power_of_two(static_cast<float>(n.leak))),
        exact_leak(n.charge == Charge::kDecay && !leak && n.leak <= 1 &&
                   is_moderate_power_of_two(static_cast<float>(n.leak))),
        tau_inverse(power_of_two ? 1.0f / static_cast<float>(n.leak) : 0.0f),
        input_share(n.charge == Charge::kLeakInput ? tau_inverse : 1.0f) {}

 private:
  // Far from the ends of the range, so that the inverse is one, too.
  static bool is_power_of_two(float tau) {
    int exponent;
    return tau > 0 && std::frexp(tau, &exponent) == 0.5f && exponent > -100 && exponent < 100;
  }
};

// The decay or tau as a call gives it: a constant, one value in memory, or one per channel.
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

// How W neighbours' potentials move, for one charge and reset. kPowerOfTwo: tau is one.
template <Charge C, Reset R, bool kPowerOfTwo>
struct Dynamics {
  static CKD_FN bool is(const Rule& rule) {
    return rule.charge == C && rule.reset == R && rule.power_of_two == kPowerOfTwo;
  }

  template <int W, class LeakOf>
  static CKD_DEVICE void charge(const float (&v)[W], const float (&x)[W], const LeakOf& leak, const Rule& rule,
                                float (&h)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if constexpr (kPowerOfTwo) {
        h[j] = potential<C, R>(v[j], x[j], PowerOfTwo{rule.tau_inverse}, rule.k);
      } else {
        h[j] = potential<C, R>(v[j], x[j], leak[j], rule.k);
      }
    }
  }
  static CKD_DEVICE float after_reset(float h, const Rule& rule) { return ckd::after_reset<R>(h, rule.k); }

  // From dL/dh to dL/dx, in place.
  template <int W, class LeakOf>
  static CKD_DEVICE void input_gradient(float (&g)[W], const LeakOf& leak, const Rule& rule) {
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if constexpr (kPowerOfTwo) {
        g[j] = grad_input<C>(g[j], PowerOfTwo{rule.tau_inverse});
      } else {
        g[j] = grad_input<C>(g[j], leak[j]);
      }
    }
  }
};

// Any charge and reset, looked up at run time: the same bits as the Dynamics that it stands for.
struct AnyDynamics {
  template <int W, class LeakOf>
  static CKD_DEVICE void charge(const float (&v)[W], const float (&x)[W], const LeakOf& leak, const Rule& rule,
                                float (&h)[W]) {
    if (rule.charge == Charge::kDecay) {
#pragma unroll
      for (int j = 0; j < W; ++j) h[j] = potential<Charge::kDecay, Reset::kSubtract>(v[j], x[j], leak[j], rule.k);
    } else if (rule.power_of_two) {
#pragma unroll
      for (int j = 0; j < W; ++j) h[j] = leaked(v[j], x[j], PowerOfTwo{rule.tau_inverse}, rule);
    } else {
#pragma unroll
      for (int j = 0; j < W; ++j) h[j] = leaked(v[j], x[j], leak[j], rule);
    }
  }
  static CKD_DEVICE float after_reset(float h, const Rule& rule) {
    const float reset = rule.reset == Reset::kHard ? rule.k.rest : h - rule.k.drop_now;
    return h >= rule.k.fire_level ? reset : h;
  }
  template <int W, class LeakOf>
  static CKD_DEVICE void input_gradient(float (&g)[W], const LeakOf& leak, const Rule& rule) {
    if (rule.charge != Charge::kLeakInput) return;
    if (rule.power_of_two) {
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] = grad_input<Charge::kLeakInput>(g[j], PowerOfTwo{rule.tau_inverse});
    } else {
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] = grad_input<Charge::kLeakInput>(g[j], leak[j]);
    }
  }

 private:
  // A hard reset has nothing to take away later.
  template <class Tau>
  static CKD_DEVICE float leaked(float v, float x, Tau tau, const Rule& rule) {
    const bool leaks_input = rule.charge == Charge::kLeakInput;
    const float above = v - rule.k.rest, part = (leaks_input ? x - above : above) / tau;
    return (leaks_input ? v + part : v - part + x) - delayed_drop(v, rule.k);
  }
};

CKD_DEVICE float leak_gradient(float gh, float v, float x, float leak, const Rule& rule) {
  switch (rule.charge) {
    case Charge::kDecay:
      return grad_leak<Charge::kDecay>(gh, v, x, leak, rule.k.rest);
    case Charge::kLeak:
      return grad_leak<Charge::kLeak>(gh, v, x, leak, rule.k.rest);
    default:
      return grad_leak<Charge::kLeakInput>(gh, v, x, leak, rule.k.rest);
  }
}

// Calls f with the dynamics of a forward kernel: those of the usual neurons are compiled in, or of more, or none; the
// others are looked up.
enum class CompiledIn { kNone, kUsual, kMore };
template <CompiledIn kWhich, class F>
CKD_DEVICE void with_dynamics(const Rule& rule, F&& f) {
  if constexpr (kWhich != CompiledIn::kNone) {
    using PaperDynamics = Dynamics<Charge::kDecay, Reset::kHard, false>;
    using SpikingJellyDynamics = Dynamics<Charge::kLeakInput, Reset::kHard, true>;
    using SnnTorchDynamics = Dynamics<Charge::kDecay, Reset::kSubtract, false>;
    if (PaperDynamics::is(rule)) return f(PaperDynamics());
    if (SpikingJellyDynamics::is(rule)) return f(SpikingJellyDynamics());
    if (SnnTorchDynamics::is(rule)) return f(SnnTorchDynamics());
  }
  if constexpr (kWhich == CompiledIn::kMore) {
    using SoftDynamics = Dynamics<Charge::kLeakInput, Reset::kSubtract, true>;
    using UndecayedDynamics = Dynamics<Charge::kLeak, Reset::kHard, true>;
    using SoftUndecayedDynamics = Dynamics<Charge::kLeak, Reset::kSubtract, true>;
    if (SoftDynamics::is(rule)) return f(SoftDynamics());
    if (UndecayedDynamics::is(rule)) return f(UndecayedDynamics());
    if (SoftUndecayedDynamics::is(rule)) return f(SoftUndecayedDynamics());
  }
  f(AnyDynamics());
}

template <Reset R>
struct ResetGradient {
  static constexpr Reset reset = R;
  static CKD_DEVICE float back(float h, float gs, float gv, float sg, const Constants<float>& k) {
    return fire_backward<R>(h, gs, gv, sg, k);
  }
};

// A neuron that is known at run time: each function calls f with the type that stands for a choice.
struct AnyNeuron {
  template <class F>
  static CKD_DEVICE void dynamics(const Rule&, F&& f) {
    f(AnyDynamics());
  }
  template <class F>
  static CKD_DEVICE void surrogate(const Rule& rule, F&& f) {
    with_surrogate(rule.surrogate, f);
  }
  template <class F>
  static CKD_DEVICE void reset_gradient(const Rule& rule, F&& f) {
    rule.reset == Reset::kHard ? f(ResetGradient<Reset::kHard>()) : f(ResetGradient<Reset::kSubtract>());
  }
  template <int W, class LeakOf>
  static CKD_DEVICE void input_gradient(float (&g)[W], const LeakOf& leak, const Rule& rule) {
    AnyDynamics::input_gradient(g, leak, rule);
  }
};

template <Reset R, class SurrogateOf>
struct CompiledFiring {
  template <class F>
  static CKD_DEVICE void surrogate(const Rule&, F&& f) {
    f(SurrogateOf());
  }
  template <class F>
  static CKD_DEVICE void reset_gradient(const Rule&, F&& f) {
    f(ResetGradient<R>());
  }
};

// A reset and a surrogate that a kernel was compiled for, with any charge: that is looked up once for all steps.
template <Reset R, class SurrogateOf, SurrogateKind kKind>
struct AnyCharge : CompiledFiring<R, SurrogateOf> {
  static bool is(const Rule& rule) {
    const bool divides = rule.charge != Charge::kDecay && !rule.power_of_two;
    return rule.reset == R && rule.surrogate == kKind && !divides;
  }
  template <class F>
  static CKD_DEVICE void dynamics(const Rule& rule, F&& f) {
    if (rule.charge == Charge::kDecay) return f(Dynamics<Charge::kDecay, R, false>());
    if (rule.charge == Charge::kLeak) return f(Dynamics<Charge::kLeak, R, true>());
    f(Dynamics<Charge::kLeakInput, R, true>());
  }
  // Multiplied with 1, a gradient stays as it is.
  template <int W, class LeakOf>
  static CKD_DEVICE void input_gradient(float (&g)[W], const LeakOf&, const Rule& rule) {
#pragma unroll
    for (int j = 0; j < W; ++j) g[j] = g[j] * rule.input_share;
  }
};

// A neuron that a kernel was compiled for, with a detached reset or without.
template <Charge C, Reset R, class Surrogate, SurrogateKind kKind, bool kPowerOfTwo>
struct OneNeuron : CompiledFiring<R, Surrogate> {
  using Moves = Dynamics<C, R, kPowerOfTwo>;
  static bool is(const Rule& rule) { return Moves::is(rule) && rule.surrogate == kKind; }
  template <class F>
  static CKD_DEVICE void dynamics(const Rule&, F&& f) {
    f(Moves());
  }
  template <int W, class LeakOf>
  static CKD_DEVICE void input_gradient(float (&g)[W], const LeakOf& leak, const Rule& rule) {
    Moves::input_gradient(g, leak, rule);
  }
};

// The ones that backward kernels are compiled for: that of the CKDSNN paper, and SpikingJelly's LIF with its default
// surrogate and with the one that most of its users choose.
using PaperNeuron = OneNeuron<Charge::kDecay, Reset::kHard, Triangle, SurrogateKind::kTriangle, false>;

// The paper's neuron with the constants that it has there, for kernels that wait for arithmetic: multiplications with
// powers of two are exact, so that one rounding gives what two give, and what is 0 need not be computed with.
struct PaperConstants {
  struct Moves : PaperNeuron::Moves {
    template <int W, class LeakOf>
    static CKD_DEVICE void charge(const float (&v)[W], const float (&x)[W], const LeakOf& leak, const Rule&,
                                  float (&h)[W]) {
#pragma unroll
      for (int j = 0; j < W; ++j) h[j] = __fmaf_rn(v[j], leak[j], x[j]);
    }
    static CKD_DEVICE float after_reset(float h, const Rule& rule) { return h >= rule.k.fire_level ? 0.0f : h; }
  };
  struct Surrogate {
    static CKD_DEVICE float derivative(float u, float c0, float c1) {
      return positive_or_nan(__fmaf_rn(-magnitude(u), c1, c0));
    }
  };
  struct Back {
    static CKD_DEVICE float back(float h, float gs, float gv, float sg, const Constants<float>& k) {
      return gs * sg + gv * ((h >= k.fire_level ? 0.0f : 1.0f) - h * sg);
    }
  };

  // Nothing so small or so large that a product with it would not be exact where the sum shows it.
  static bool is(const Rule& rule) {
    const Constants<float>& k = rule.k;
    return PaperNeuron::is(rule) && rule.exact_leak && k.rest == 0 && k.attached && is_moderate(k.fire_level) &&
           is_moderate(k.threshold) && is_moderate(k.c0) && is_moderate_power_of_two(k.c1);
  }
  template <class F>
  static CKD_DEVICE void dynamics(const Rule&, F&& f) {
    f(Moves());
  }
  template <class F>
  static CKD_DEVICE void surrogate(const Rule&, F&& f) {
    f(Surrogate());
  }
  template <class F>
  static CKD_DEVICE void reset_gradient(const Rule&, F&& f) {
    f(Back());
  }
  template <int W, class LeakOf>
  static CKD_DEVICE void input_gradient(float (&)[W], const LeakOf&, const Rule&) {}
};

template <class Surrogate, SurrogateKind kKind>
using SpikingJellyNeuron = OneNeuron<Charge::kLeakInput, Reset::kHard, Surrogate, kKind, true>;

// Neurons whose kernels wait for arithmetic. A branch for each step would keep steps from being computed side by side:
// kernels for several steps are for exactly so many.
template <class N>
inline constexpr bool kHasExponential = std::is_same_v<N, SpikingJellyNeuron<Sigmoid, SurrogateKind::kSigmoid>>;

// Calls f(OneNeuron) with the one of SpikingJelly's neurons that this is; whether it is one.
template <class F>
bool with_spikingjelly_neuron(const Rule& rule, F&& f) {
  using WithSigmoid = SpikingJellyNeuron<Sigmoid, SurrogateKind::kSigmoid>;
  using WithATan = SpikingJellyNeuron<ATan, SurrogateKind::kATan>;
  if (WithSigmoid::is(rule)) return f(WithSigmoid()), true;
  if (WithATan::is(rule)) return f(WithATan()), true;
  return false;
}

// The same for neurons alone.
template <class F>
bool with_usual_neuron(const Rule& rule, F&& f) {
  const auto is_one = [&](auto neuron) {
    const bool is = decltype(neuron)::is(rule);
    if (is) f(neuron);
    return is;
  };
  return is_one(SpikingJellyNeuron<Sigmoid, SurrogateKind::kSigmoid>()) ||
         is_one(AnyCharge<Reset::kHard, ATan, SurrogateKind::kATan>()) ||
         is_one(AnyCharge<Reset::kSubtract, ATan, SurrogateKind::kATan>()) ||
         is_one(AnyCharge<Reset::kSubtract, FastSigmoid, SurrogateKind::kFastSigmoid>());
}

inline bool is_compiled_in(const Rule& rule, bool normalised) {
  const auto nothing = [](auto) {};
  if (rule.delayed) return false;
  return PaperNeuron::is(rule) ||
         (normalised ? with_spikingjelly_neuron(rule, nothing) : with_usual_neuron(rule, nothing));
}

}  // namespace ckd::cuda
