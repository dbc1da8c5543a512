// Multi-step neurons forward: a thread carries W neighbours' potentials through all time steps in registers.
#pragma once
#include "locations.cuh"
#include "rule.cuh"

namespace ckd::cuda {

// What charges the neurons: x itself.
template <class S>
struct Input {
  const S* x;

  template <int W>
  using Packet = Pack<S, W>;

  template <int W>
  CKD_DEVICE Packet<W> load(int64_t offset) const {
    return cuda::load<W>(x + offset);
  }
  template <int W>
  CKD_DEVICE void values(const Packet<W>& packet, float (&x)[W]) const {
    widen(packet, x);
  }
};

template <class S>
struct ForwardCall {
  Extent extent;
  Rule rule;
  LeakSource leak;
  Input<S> input;
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

// All time steps of W neighbours.
template <int W, class D, class S, class LeakOf, class Count>
CKD_DEVICE void fire(const ForwardCall<S>& call, const Place& place, const LeakOf& leak, Count&& count) {
  const Extent& e = call.extent;
  const Constants<float>& k = call.rule.k;
  const int64_t state = e.state(place);
  int64_t input = e.input(place), output = e.sequence(place);
  auto next = call.input.template load<W>(input);
  float v[W];
  if (call.v_init) {
    load_floats(call.v_init + state, v);
  } else {
    fill(k.rest, v);
  }
#pragma unroll 1
  for (int t = 1; t <= e.steps; ++t) {
    const auto now = next;
    if (t < e.steps && !e.repeated) {  // in flight while this step is computed
      input += e.frame;
      next = call.input.template load<W>(input);
    }
    float x[W], spikes[W];
    call.input.values(now, x);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float h = potential<D::charge, D::reset>(v[j], x[j], leak[j], k);
      const bool fires = h >= k.fire_level;
      spikes[j] = fires ? 1.0f : 0.0f;
      count.add(j, fires);
      v[j] = after_reset<D::reset>(h, k);
    }
    store(call.spikes + output, narrow<S>(spikes));
    output += e.frame;
    if (call.checkpoints && t % kCheckpointEvery == 0 && t < e.steps) {
      store_floats(call.checkpoints + (t / kCheckpointEvery - 1) * e.neurons() + state, v);
    }
  }
  if (call.v_last) store_floats(call.v_last + state, v);
}

template <class S, int W, bool kLeakEach>
__global__ void __launch_bounds__(256) lif_forward_kernel(const __grid_constant__ ForwardCall<S> call) {
  with_dynamics(call.rule, [&](auto dynamics) {
    for_each_neuron<W>(call.extent, [&](int64_t, const Place& place) {
      const Leak<W, kLeakEach> leak(call.leak, call.extent, place);
      fire<W, decltype(dynamics)>(call, place, leak, NoCount());
    });
  });
}

// The same, with the spike activation map.
template <class S, int W, template <class, int> class Locations>
__global__ void __launch_bounds__(512, 1) lif_forward_sam_kernel(const __grid_constant__ ForwardCall<S> call) {
  Locations<int, W>::mean_over_channels(call.extent, call.tile, call.sam, [&](const Place& place, int (&count)[W]) {
    const Leak<W, Locations<int, W>::kChannelsInside> leak(call.leak, call.extent, place);
    with_dynamics(call.rule,
                  [&](auto dynamics) { fire<W, decltype(dynamics)>(call, place, leak, SpikeCount<W>{count}); });
  });
}

}  // namespace ckd::cuda
