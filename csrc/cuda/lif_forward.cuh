// Multi-step neurons forward: a thread carries W neighbours' potentials through all time steps in registers.
#pragma once
#include "current.cuh"
#include "locations.cuh"
#include "rule.cuh"

namespace ckd::cuda {

template <class Current>
struct ForwardCall {
  using Storage = typename Current::Storage;
  Extent extent;
  Rule rule;
  LeakSource leak;
  Current current;
  const float* v_init;
  Storage* spikes;
  float* v_last;
  float* checkpoints;
  float* sam;
  LocationTile tile;  // where sam is given
};

struct NoCount {
  CKD_DEVICE void add(int, bool) {}
};

template <int W>
struct SpikeCount {
  int (&count)[W];
  CKD_DEVICE void add(int j, bool fires) { count[j] += fires ? 1 : 0; }
};

// All time steps of W neighbours.
template <int kSteps, class D, int W, class CurrentAt, class Current, class LeakOf, class Count>
CKD_DEVICE void fire(const ForwardCall<Current>& call, const Place& place, const CurrentAt& current, const LeakOf& leak,
                     float (&v)[W], Count&& count) {
  using S = typename Current::Storage;
  using Input = Stream<typename CurrentAt::Packets, kSteps>;
  const Extent& e = call.extent;
  const Constants<float>& k = call.rule.k;
  // Beside a map, whose counts take registers, kSteps is exact.
  constexpr bool kExact = kSteps > 0 && !std::is_same_v<std::decay_t<Count>, NoCount>;
  const int steps = kExact ? kSteps : e.steps;
  Input input(current.from(0), steps);
  S* spikes_to = call.spikes + place.sequence;
#pragma unroll 1
  for (int first = 0; first < (kSteps > 0 ? kSteps : steps); first += Input::kGroup) {
    const auto& packets = input.take();
#pragma unroll
    for (int i = 0; i < Input::kGroup; ++i) {
      if (kSteps > 0 ? !has_step<kSteps>(i, steps) : first + i >= steps) break;
      float x[W], h[W], spikes[W];
      current.values(packets[i], x);
      D::charge(v, x, leak, call.rule, h);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const bool fires = h[j] >= k.fire_level;
        spikes[j] = fires ? 1.0f : 0.0f;
        count.add(j, fires);
        v[j] = D::after_reset(h[j], call.rule);
      }
      store(spikes_to, narrow<S>(spikes));
      spikes_to += e.frame;
    }
    if constexpr (kSteps == 0) {
      static_assert(kCheckpointEvery % Input::kGroup == 0);
      const int done = first + Input::kGroup;
      if (call.checkpoints && done % kCheckpointEvery == 0 && done < steps) {
        store_floats(call.checkpoints + (done / kCheckpointEvery - 1) * e.neurons + place.state, v);
      }
    }
  }
}

template <int W, int kSteps, bool kEach, class Current, class Count>
CKD_DEVICE void fire_all_steps(const ForwardCall<Current>& call, const Place& place, Count&& count) {
  const typename Current::template At<W, kEach> current(call.current, call.extent, place);
  const Leak<W, kEach> leak(call.leak, call.extent, place);
  float v[W];
  if (call.v_init) {
    load_floats(call.v_init + place.state, v);
  } else {
    fill(call.rule.k.rest, v);
  }
  // More of them where that is cheap: without a normalisation and a map.
  constexpr bool kPlain =
      std::is_same_v<Current, StoredCurrent<typename Current::Storage>> && std::is_same_v<std::decay_t<Count>, NoCount>;
  constexpr CompiledIn kWhich = W == 1 ? CompiledIn::kNone : kPlain ? CompiledIn::kMore : CompiledIn::kUsual;
  with_dynamics<kWhich>(call.rule,
                        [&](auto dynamics) { fire<kSteps, decltype(dynamics)>(call, place, current, leak, v, count); });
  if (call.v_last) store_floats(call.v_last + place.state, v);
}

// kEach: neighbours need not be of one channel, and so have constants of their own.
template <class Current, int W, int kSteps, bool kEach>
__global__ void __launch_bounds__(256, 1) lif_forward_kernel(const __grid_constant__ ForwardCall<Current> call) {
  const int64_t neuron = first_neuron<W>();
  if (neuron >= call.extent.neurons) return;
  fire_all_steps<W, kSteps, kEach>(call, call.extent.place(neuron), NoCount());
}

// The same kernel with the spike activation map.
template <class Current, int W, int kSteps, template <class, int> class Locations>
__global__ void __launch_bounds__(512, 1) lif_forward_sam_kernel(const __grid_constant__ ForwardCall<Current> call) {
  using L = Locations<int, W>;
  L::mean_over_channels(call.extent, call.tile, call.sam, [&](const Place& place, int (&count)[W]) {
    fire_all_steps<W, kSteps, L::kChannelsInside>(call, place, SpikeCount<W>{count});
  });
}

}  // namespace ckd::cuda
