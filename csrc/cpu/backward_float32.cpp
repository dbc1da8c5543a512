// Compiles the loops backward of every neuron over rows of float, and of the usual ones behind a normalisation.
#ifdef CKD_FUSED
#include "cpu/loop/backward.h"

namespace ckd::cpu::CKD_ISA {

ByGroup<BackwardLoop<Float32>> backward_loops(const Neuron& neuron) {
  ByGroup<BackwardLoop<Float32>> loops;
  with_charge_and_reset(neuron, [&](auto charge, auto reset) {
    with_surrogate(neuron.surrogate, [&](auto surrogate) {
      using N = UsualNeuron<decltype(charge)::value, decltype(reset)::value, decltype(surrogate)>;
      loops = by_group([](auto group) -> BackwardLoop<Float32> {
        return backward_steps<N, decltype(group)::value, Single<Float32>, Source::kPlain, Part::kMany, Sink::kStore>;
      });
    });
  });
  return loops;
}

template BackwardLoop<Float32> backward_bn_loop<Float32>(const LifBackward&, bool);

}  // namespace ckd::cpu::CKD_ISA
#endif
