// Compiles the fused steps of every neuron.
#ifdef CKD_FUSED
#include "fused.h"

namespace ckd::cpu::CKD_ISA {

FusedSteps::FusedSteps(const Neuron& neuron) : k(neuron), back(neuron) {
  if (neuron.detach_reset) back.drop_now = 0;
  const auto choose = [&](auto charge, auto through) {
    constexpr Charge C = decltype(charge)::value;
    constexpr Through T = decltype(through)::value;
    with_surrogate(neuron.surrogate, [&](auto surrogate) {
      using G = decltype(surrogate);
      steps = {fused_steps<4, C, T, G>, fused_steps<2, C, T, G>, fused_steps<1, C, T, G>};
    });
  };
  with_charge_and_reset(neuron, [&](auto charge, auto reset) {
    if constexpr (decltype(reset)::value == Reset::kSubtract) {
      choose(charge, std::integral_constant<Through, Through::kSubtract>{});
    } else if (neuron.detach_reset) {
      choose(charge, std::integral_constant<Through, Through::kHardDetached>{});
    } else {
      choose(charge, std::integral_constant<Through, Through::kHard>{});
    }
  });
}

}  // namespace ckd::cpu::CKD_ISA
#endif
