// From a neuron's values to the loops made for them, once a call.
#pragma once
#include <type_traits>

#include "ckd/params.h"

namespace ckd::cpu::CKD_ISA {

// Calls f(integral_constant<Charge>, integral_constant<Reset>).
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

// A loop for each number of steps in a group.
template <class Function>
struct ByGroup {
  Function four, two, one;
  template <int G>
  Function get() const {
    return G == 4 ? four : G == 2 ? two : one;
  }
};

// `make(integral_constant<G>)` gives each of them.
template <class Make>
inline auto by_group(const Make& make) {
  const auto one = make(std::integral_constant<int, 1>{});
  return ByGroup<std::remove_const_t<decltype(one)>>{make(std::integral_constant<int, 4>{}),
                                                     make(std::integral_constant<int, 2>{}), one};
}

}  // namespace ckd::cpu::CKD_ISA
