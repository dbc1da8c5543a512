// Compiles the fused steps of every neuron over rows of float.
#ifdef CKD_FUSED
#include "fused.h"

namespace ckd::cpu::CKD_ISA {

FusedSteps::FusedSteps(const Neuron& neuron) : k(neuron), drop_back(neuron.detach_reset ? 0 : k.drop_now) {
  with_fused(neuron, [&](auto charge, auto through, auto surrogate) {
    constexpr Charge C = decltype(charge)::value;
    constexpr Through T = decltype(through)::value;
    using S = decltype(surrogate);
    steps = {fused_steps<4, C, T, S>, fused_steps<2, C, T, S>, fused_steps<1, C, T, S>};
  });
}

}  // namespace ckd::cpu::CKD_ISA
#endif
