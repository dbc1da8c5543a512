// Compiles the fused steps of every neuron over rows of float.
#ifdef CKD_FUSED
#include "cpu/loop/backward.h"

namespace ckd::cpu::CKD_ISA {

FusedSteps::FusedSteps(const Neuron& neuron) : k(neuron) {
  with_charge_and_reset(neuron, [&](auto charge, auto reset) {
    constexpr Charge C = decltype(charge)::value;
    constexpr Reset R = decltype(reset)::value;
    with_surrogate(neuron.surrogate, [&](auto surrogate) {
      using S = decltype(surrogate);
      steps = {fused_steps<4, C, R, S>, fused_steps<2, C, R, S>, fused_steps<1, C, R, S>};
    });
  });
}

}  // namespace ckd::cpu::CKD_ISA
#endif
