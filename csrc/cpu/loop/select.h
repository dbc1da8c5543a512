// From a neuron's values to the step functions made for them, once a call.
#pragma once
#include <type_traits>

#include "cpu/loop/steps.h"

namespace ckd::cpu::CKD_ISA {

// f(integral_constant<Charge>, integral_constant<Reset>).
template <class F>
inline void with_charge_and_reset(const Neuron& neuron, const F& f) {
  const auto with_reset = [&](auto charge) {
    if (neuron.reset == Reset::kHard) {
      f(charge, std::integral_constant<Reset, Reset::kHard>{});
    } else {
      f(charge, std::integral_constant<Reset, Reset::kSubtract>{});
    }
  };
  switch (neuron.charge) {
    case Charge::kDecay:
      return with_reset(std::integral_constant<Charge, Charge::kDecay>{});
    case Charge::kLeak:
      return with_reset(std::integral_constant<Charge, Charge::kLeak>{});
    case Charge::kLeakInput:
      return with_reset(std::integral_constant<Charge, Charge::kLeakInput>{});
  }
}

inline bool is_delayed(const Neuron& neuron) { return neuron.drop_later != 0 && !neuron.detach_reset; }

// A group function for each number of steps.
template <class Function>
struct ByGroup {
  Function four, two, one;
  template <int G>
  Function get() const {
    return G == 4 ? four : G == 2 ? two : one;
  }
};

template <class In, class Out>
struct ForwardSteps {
  using Function = decltype(&forward_steps<1, Charge::kDecay, Reset::kHard, false, In, Out>);
  ByGroup<Function> steps;
  ForwardSteps(const Neuron& neuron, bool count) {
    with_charge_and_reset(neuron, [&](auto c, auto r) {
      constexpr Charge C = decltype(c)::value;
      constexpr Reset R = decltype(r)::value;
      if (count) {
        steps = {forward_steps<4, C, R, true, In, Out>, forward_steps<2, C, R, true, In, Out>,
                 forward_steps<1, C, R, true, In, Out>};
      } else {
        steps = {forward_steps<4, C, R, false, In, Out>, forward_steps<2, C, R, false, In, Out>,
                 forward_steps<1, C, R, false, In, Out>};
      }
    });
  }
};

template <class In>
struct RecomputeSteps {
  using Real = typename In::Real;
  using Function = decltype(&recompute_steps<1, Charge::kDecay, Reset::kHard, In>);
  ByGroup<Function> steps;
  void (*leak)(Constants<Real>, int64_t, const Real*, const Real*, const Real*, const Real*, Real*);
  void (*reset)(Constants<Real>, int64_t, const Real*, Real*);
  void (*surrogate)(Constants<Real>, int64_t, const Real*, Real*);
  explicit RecomputeSteps(const Neuron& neuron) {
    with_charge_and_reset(neuron, [&](auto c, auto r) {
      constexpr Charge C = decltype(c)::value;
      constexpr Reset R = decltype(r)::value;
      steps = {recompute_steps<4, C, R, In>, recompute_steps<2, C, R, In>, recompute_steps<1, C, R, In>};
      leak = leak_row<C, Real>;
      reset = reset_row<R, Real>;
    });
    with_surrogate(neuron.surrogate, [&](auto s) { surrogate = surrogate_row<decltype(s), Real>; });
  }
};

template <class In>
struct AdvanceSteps {
  ByGroup<decltype(&advance_steps<1, Charge::kDecay, Reset::kHard, In>)> steps;
  explicit AdvanceSteps(const Neuron& neuron) {
    with_charge_and_reset(neuron, [&](auto c, auto r) {
      constexpr Charge C = decltype(c)::value;
      constexpr Reset R = decltype(r)::value;
      steps = {advance_steps<4, C, R, In>, advance_steps<2, C, R, In>, advance_steps<1, C, R, In>};
    });
  }
};

template <class Real>
struct BackwardSteps {
  using Function = decltype(&backward_steps<1, Reset::kHard, false, Real>);
  ByGroup<Function> steps;
  explicit BackwardSteps(const Neuron& neuron) {
    const auto choose = [&](auto reset, auto delayed) {
      constexpr Reset R = decltype(reset)::value;
      constexpr bool D = decltype(delayed)::value;
      steps = {backward_steps<4, R, D, Real>, backward_steps<2, R, D, Real>, backward_steps<1, R, D, Real>};
    };
    if (neuron.reset == Reset::kHard) {
      choose(std::integral_constant<Reset, Reset::kHard>{}, std::false_type{});
    } else if (is_delayed(neuron)) {
      choose(std::integral_constant<Reset, Reset::kSubtract>{}, std::true_type{});
    } else {
      choose(std::integral_constant<Reset, Reset::kSubtract>{}, std::false_type{});
    }
  }
};

}  // namespace ckd::cpu::CKD_ISA
