// Compiles the fused steps of the usual neurons over rows of bfloat16.
#ifdef CKD_FUSED
#include "cpu/loop/backward_pairs.h"

namespace ckd::cpu::CKD_ISA {

FusedPairs::FusedPairs(const Neuron& neuron, Part part) : k(neuron) {
  with_usual(neuron, [&](auto usual) {
    using N = decltype(usual);
    const auto choose = [&](auto p) {
      constexpr Part P = decltype(p)::value;
      steps = {fused_pairs<4, N::charge, N::reset, typename N::Surrogate, P>,
               fused_pairs<2, N::charge, N::reset, typename N::Surrogate, P>,
               fused_pairs<1, N::charge, N::reset, typename N::Surrogate, P>};
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
