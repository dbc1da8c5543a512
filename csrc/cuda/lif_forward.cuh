// Multi-step neurons forward: a thread carries W neighbours' potentials through all time steps in registers.
#pragma once
#include "locations.cuh"
#include "rule.cuh"
#include "series.cuh"

namespace ckd::cuda {

template <class S>
struct ForwardCall {
  Extent extent;
  Rule rule;
  LeakSource leak;
  Series<S> input;
  const float* v_init;
  S* spikes;
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

// All time steps of W neighbours: kSteps of them, or, with 0, as many as the call has.
template <int W, int kSteps, class D, class S, class LeakOf, class Count>
CKD_DEVICE void fire(const ForwardCall<S>& call, const Place& place, const LeakOf& leak, Count&& count) {
  const Extent& e = call.extent;
  const Constants<float>& k = call.rule.k;
  const int steps = kSteps > 0 ? kSteps : e.steps;
  Stream<Series<S>, W, kSteps> input({call.input.at + place.input}, e.repeated ? 0 : e.frame);
  SeriesGradient<S> spikes_to{call.spikes + place.sequence};
  float v[W];
  if (call.v_init) {
    load_floats(call.v_init + place.state, v);
  } else {
    fill(k.rest, v);
  }
#pragma unroll(kSteps > 0 ? kSteps : 1)
  for (int t = 0; t < steps; ++t) {
    float x[W], spikes[W];
    Series<S>::values(input.take(t, steps), x);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float h = D::charged(v[j], x[j], leak, j, call.rule);
      const bool fires = h >= k.fire_level;
      spikes[j] = fires ? 1.0f : 0.0f;
      count.add(j, fires);
      v[j] = after_reset<D::reset>(h, k);
    }
    spikes_to.store(spikes);
    spikes_to.advance(e.frame);
    if constexpr (kSteps == 0) {
      if (call.checkpoints && (t + 1) % kCheckpointEvery == 0 && t + 1 < steps) {
        store_floats(call.checkpoints + t / kCheckpointEvery * e.neurons + place.state, v);
      }
    }
  }
  if (call.v_last) store_floats(call.v_last + place.state, v);
}

template <class S, int W, int kSteps, bool kLeakEach>
__global__ void __launch_bounds__(256, 1) lif_forward_kernel(const __grid_constant__ ForwardCall<S> call) {
  const int64_t neuron = first_neuron<W>();
  if (neuron >= call.extent.neurons) return;
  const Place place = call.extent.place(neuron);
  const Leak<W, kLeakEach> leak(call.leak, call.extent, place);
  AnyNeuron::dynamics(call.rule,
                      [&](auto dynamics) { fire<W, kSteps, decltype(dynamics)>(call, place, leak, NoCount()); });
}

// The same, with the spike activation map.
template <class S, int W, int kSteps, template <class, int> class Locations>
__global__ void __launch_bounds__(512, 1) lif_forward_sam_kernel(const __grid_constant__ ForwardCall<S> call) {
  Locations<int, W>::mean_over_channels(call.extent, call.tile, call.sam, [&](const Place& place, int (&count)[W]) {
    const Leak<W, Locations<int, W>::kChannelsInside> leak(call.leak, call.extent, place);
    AnyNeuron::dynamics(call.rule, [&](auto dynamics) {
      fire<W, kSteps, decltype(dynamics)>(call, place, leak, SpikeCount<W>{count});
    });
  });
}

}  // namespace ckd::cuda
