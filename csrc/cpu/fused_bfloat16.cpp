// Compiles the fused steps of every neuron over rows of bfloat16.
#ifdef CKD_FUSED
#include "fused_pairs.h"

namespace ckd::cpu::CKD_ISA {

FusedPairs::FusedPairs(const Neuron& neuron, Part part) : k(neuron), drop_back(neuron.detach_reset ? 0 : k.drop_now) {
  with_fused(neuron, [&](auto charge, auto through, auto surrogate) {
    constexpr Charge C = decltype(charge)::value;
    constexpr Through T = decltype(through)::value;
    using S = decltype(surrogate);
    const auto choose = [&](auto p) {
      constexpr Part P = decltype(p)::value;
      steps = {fused_pairs<4, C, T, S, P>, fused_pairs<2, C, T, S, P>, fused_pairs<1, C, T, S, P>};
    };
    switch (part) {
      case Part::kWhole:
        return choose(std::integral_constant<Part, Part::kWhole>{});
      case Part::kWholeWithMap:
        return choose(std::integral_constant<Part, Part::kWholeWithMap>{});
      case Part::kOfMany:
        return choose(std::integral_constant<Part, Part::kOfMany>{});
    }
  });
}

}  // namespace ckd::cpu::CKD_ISA
#endif
