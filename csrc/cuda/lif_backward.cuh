// Multi-step neurons backward: a thread runs W neighbours forward again from x, keeping a chunk's potentials on chip,
// then back through time; the last chunk first, each from the potential that the forward pass left at its start.
#pragma once
#include "rule.cuh"
#include "series.cuh"

namespace ckd::cuda {

// How the gradient of the spike activation map lies for W neighbours.
enum class MapAccess : int { kNone, kOneValue, kContiguous, kScattered };

template <class S>
struct BackwardCall {
  Extent extent;
  Rule rule;
  LeakSource leak;
  Series<S> input;
  const float* v_init;
  const float* checkpoints;
  const S* grad_spikes;
  const float* grad_v;
  const float* grad_sam;
  float map_share;  // of one spike in its location's mean
  MapAccess map_access;
  SeriesGradient<S> output;
  float* grad_v_init;
  double* leak_sums;  // null: not wanted; else one sum for W neighbours, or one for each
  bool leak_sum_each;
};

// The potentials of a chunk: in registers where the number of steps is known, else in shared memory that no other
// thread reads.
template <int W, int kSteps>
class History {
  float h_[kSteps][W];

 public:
  CKD_DEVICE void set(int t, const float (&h)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) h_[t][j] = h[j];
  }
  CKD_DEVICE void get(int t, float (&h)[W]) const {
#pragma unroll
    for (int j = 0; j < W; ++j) h[j] = h_[t][j];
  }
};

template <int W>
class History<W, 0> {
  static constexpr int kPart = kFloatsAtOnce<W>;

  CKD_DEVICE float* part(int t, int p) const {
    return reinterpret_cast<float*>(ckd_dynamic_shared) + ((t * (W / kPart) + p) * blockDim.x + threadIdx.x) * kPart;
  }

 public:
  CKD_DEVICE void set(int t, const float (&h)[W]) {
#pragma unroll
    for (int j = 0; j < W; j += kPart) {
      Pack<float, kPart> pack;
#pragma unroll
      for (int i = 0; i < kPart; ++i) pack.unit[i] = h[j + i];
      store<kPart>(part(t, j / kPart), pack);
    }
  }
  CKD_DEVICE void get(int t, float (&h)[W]) const {
#pragma unroll
    for (int j = 0; j < W; j += kPart) {
      const Pack<float, kPart> pack = load<kPart>(part(t, j / kPart));
#pragma unroll
      for (int i = 0; i < kPart; ++i) h[j + i] = pack.unit[i];
    }
  }
};

// What only some calls need, and what costs the others registers: a leak or a map value of each neighbour's own, the
// leak's gradient, a repeated frame, a delayed reset that carries gradients.
template <int W, bool kGeneral>
struct Extras {
  float input_sum[W], leak_sum[W], pending[W];
  CKD_DEVICE Extras() {
    fill(0.0f, input_sum);
    fill(0.0f, leak_sum);
    fill(0.0f, pending);
  }
};
template <int W>
struct Extras<W, false> {};

// W neighbours through all chunks; kSteps is the number of steps, or 0 where it is known at run time only.
template <class S, int W, class NeuronKind, int kSteps, bool kGeneral>
class BackwardVector {
  using LeakOf = Leak<W, kGeneral>;
  template <class Source>
  using StreamOf = Stream<Source, W, kSteps>;
  const BackwardCall<S>& call;
  const Extent& e;
  const Rule& rule;
  const Constants<float>& k;
  const Place place;
  const LeakOf leak, keep;
  const float* map;  // the first neighbour's value
  History<W, kSteps> history;
  float gv[W];
  Extras<W, kGeneral> extras;

  // The potential before step `first` of a chunk.
  CKD_DEVICE void start_of(int first, float (&v)[W]) const {
    if (first > 0) {
      load_floats(call.checkpoints + (first / kCheckpointEvery - 1) * e.neurons + place.state, v);
    } else if (call.v_init) {
      load_floats(call.v_init + place.state, v);
    } else {
      fill(k.rest, v);
    }
  }

  CKD_DEVICE bool repeated() const { return kGeneral && e.repeated; }

  CKD_DEVICE Series<S> input_from(int first) const {
    return {call.input.at + place.input + (repeated() ? 0 : first * e.frame)};
  }

  CKD_DEVICE void recompute(int first, int steps, StreamOf<Series<S>>& input) {
    float v[W];
    start_of(first, v);
    NeuronKind::dynamics(rule, [&](auto dynamics) {
      using D = decltype(dynamics);
#pragma unroll(kSteps > 0 ? kSteps : 1)
      for (int t = 0; t < steps; ++t) {
        float x[W], h[W];
        Series<S>::values(input.take(t, steps), x);
#pragma unroll
        for (int j = 0; j < W; ++j) {
          h[j] = D::charged(v[j], x[j], leak, j, rule);
          v[j] = after_reset<D::reset>(h[j], k);
        }
        history.set(t, h);
      }
    });
  }

  CKD_DEVICE void add_map_gradient(float (&gs)[W]) const {
    if (call.map_access == MapAccess::kNone) return;
    float gradient[W];
    if (call.map_access == MapAccess::kContiguous) {
      load_floats(map, gradient);
    } else if (!kGeneral || call.map_access == MapAccess::kOneValue) {
      fill(*map, gradient);
    } else {
      Walk walk(e, place);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        gradient[j] = call.grad_sam[walk.location(e)];
        walk.next(e);
      }
    }
#pragma unroll
    for (int j = 0; j < W; ++j) gs[j] = gs[j] + gradient[j] * call.map_share;
  }

  CKD_DEVICE void surrogate(const float (&h)[W], float (&sg)[W]) const {
    NeuronKind::surrogate(rule, [&](auto kind) {
#pragma unroll
      for (int j = 0; j < W; ++j) sg[j] = decltype(kind)::derivative(h[j] - k.threshold, k.c0, k.c1);
    });
  }

  // From dL/ds[t] to dL/dh[t], in place.
  CKD_DEVICE void through_firing(const float (&h)[W], float (&g)[W]) const {
    float sg[W];
    surrogate(h, sg);
    NeuronKind::reset_gradient(rule, [&](auto kind) {
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] = fire_backward<decltype(kind)::through>(h[j], g[j], gv[j], sg[j], k);
    });
  }

  CKD_DEVICE void add_leak_gradient(int first, int t, const float (&gh)[W]) {
    float before[W], x[W];
    if (t == 0) start_of(first, before);
    if (t > 0) history.get(t - 1, before);
    Series<S>::values(input_from(first + t).template load<W>(), x);
    NeuronKind::dynamics(rule, [&](auto dynamics) {
      using D = decltype(dynamics);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float v = t == 0 ? before[j] : after_reset<D::reset>(before[j], k);
        extras.leak_sum[j] += grad_leak<D::charge>(gh[j], v, x[j], leak[j], k.rest);
      }
    });
  }

  // From dL/dh[t] to the gradients of the input, in place, and of v[t-1].
  CKD_DEVICE void through_charge(float (&g)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) gv[j] = g[j] * keep[j];
    NeuronKind::dynamics(rule, [&](auto dynamics) {
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] = decltype(dynamics)::input_gradient(g[j], leak, j, rule);
    });
  }

  CKD_DEVICE void run_chunk(int first, int steps) {
    const int64_t last = place.sequence + (first + steps - 1) * e.frame;
    SeriesGradient<S> output{call.output.at + (repeated() ? place.input : last)};
    StreamOf<Series<S>> input(input_from(first), repeated() ? 0 : e.frame);
    StreamOf<Series<S>> gradients({call.grad_spikes ? call.grad_spikes + last : nullptr}, -e.frame);
    recompute(first, steps, input);
#pragma unroll(kSteps > 0 ? kSteps : 1)
    for (int t = steps - 1; t >= 0; --t) {
      float h[W], g[W];
      history.get(t, h);
      Series<S>::values(gradients.take(steps - 1 - t, steps), g);
      add_map_gradient(g);
      if constexpr (kGeneral) {
        if (rule.delayed) {
#pragma unroll
          for (int j = 0; j < W; ++j) g[j] = g[j] - extras.pending[j];
        }
      }
      through_firing(h, g);
      if constexpr (kGeneral) {
        if (rule.delayed) {
#pragma unroll
          for (int j = 0; j < W; ++j) extras.pending[j] = g[j] * k.drop_later;
        }
        if (call.leak_sums) add_leak_gradient(first, t, g);
      }
      through_charge(g);
      if constexpr (kGeneral) {
        if (e.repeated) {
#pragma unroll
          for (int j = 0; j < W; ++j) extras.input_sum[j] += g[j];
          continue;
        }
      }
      output.store(g);
      output.advance(-e.frame);
    }
  }

  CKD_DEVICE void finish() {
    if constexpr (kGeneral) {
      if (e.repeated) SeriesGradient<S>{call.output.at + place.input}.store(extras.input_sum);
    }
    if (call.grad_v_init) {
      if constexpr (kGeneral) {
        if (rule.delayed) {
          float v[W], sg[W];
          start_of(0, v);
          surrogate(v, sg);
#pragma unroll
          for (int j = 0; j < W; ++j) gv[j] = gv[j] - extras.pending[j] * sg[j];
        }
      }
      store_floats(call.grad_v_init + place.state, gv);
    }
    if constexpr (kGeneral) {
      if (call.leak_sums && call.leak_sum_each) {
#pragma unroll
        for (int j = 0; j < W; ++j) call.leak_sums[place.state + j] = extras.leak_sum[j];
      } else if (call.leak_sums) {
        double sum = 0;
#pragma unroll
        for (int j = 0; j < W; ++j) sum += extras.leak_sum[j];
        call.leak_sums[place.state / W] = sum;
      }
    }
  }

 public:
  CKD_DEVICE BackwardVector(const BackwardCall<S>& call, const Place& place)
      : call(call),
        e(call.extent),
        rule(call.rule),
        k(call.rule.k),
        place(place),
        leak(call.leak, e, place),
        keep(leak.keep(rule.charge)),
        map(call.grad_sam ? call.grad_sam + Walk(e, place).location(e) : nullptr) {}

  CKD_DEVICE void run() {
    if (call.grad_v) {
      load_floats(call.grad_v + place.state, gv);
    } else {
      fill(0.0f, gv);
    }
    if constexpr (kSteps > 0) {
      run_chunk(0, kSteps);
    } else {
      for (int first = (e.steps - 1) / kCheckpointEvery * kCheckpointEvery; first >= 0; first -= kCheckpointEvery) {
        const int left = e.steps - first;
        run_chunk(first, left < kCheckpointEvery ? left : kCheckpointEvery);
      }
    }
    finish();
  }
};

template <class S, int W, class NeuronKind, int kSteps, bool kGeneral>
__global__ void __launch_bounds__(256, 1) lif_backward_kernel(const __grid_constant__ BackwardCall<S> call) {
  const int64_t neuron = first_neuron<W>();
  if (neuron >= call.extent.neurons) return;
  BackwardVector<S, W, NeuronKind, kSteps, kGeneral>(call, call.extent.place(neuron)).run();
}

}  // namespace ckd::cuda
