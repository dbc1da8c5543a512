// Compiles the loops backward of the usual neurons over rows of bfloat16.
#ifdef CKD_FUSED
#include "cpu/loop/backward.h"

namespace ckd::cpu::CKD_ISA {
namespace {

template <class N, Part P>
ByGroup<BackwardLoop<BFloat16>> pair_loops() {
  return by_group([](auto group) -> BackwardLoop<BFloat16> {
    return backward_steps<N, decltype(group)::value, Pair, Source::kPlain, P, Sink::kStore>;
  });
}

}  // namespace

ByGroup<BackwardLoop<BFloat16>> backward_pair_loops(const Neuron& neuron, Part part) {
  ByGroup<BackwardLoop<BFloat16>> loops{};
  with_usual(neuron, [&](auto usual) {
    using N = decltype(usual);
    loops = part == Part::kMany    ? pair_loops<N, Part::kMany>()
            : part == Part::kWhole ? pair_loops<N, Part::kWhole>()
                                   : pair_loops<N, Part::kWholeWithMap>();
  });
  return loops;
}

}  // namespace ckd::cpu::CKD_ISA
#endif
