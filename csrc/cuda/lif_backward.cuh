// Multi-step neurons backward: a thread runs W neighbours forward again from x, keeping a chunk's potentials on chip,
// then back through time; the last chunk first, each from the potential that the forward pass left at its start.
#pragma once
#include "rule.cuh"

namespace ckd::cuda {

// Where the gradients of what charged the neurons go: x alone.
template <class S>
struct InputGradient {
  S* grad_x;

  template <int W>
  CKD_DEVICE void store(int64_t offset, const float (&gradient)[W]) const {
    cuda::store(grad_x + offset, narrow<S>(gradient));
  }
};

// How the gradient of the spike activation map lies for W neighbours.
enum class MapAccess : int { kNone, kOneValue, kContiguous, kScattered };

template <class S>
struct BackwardCall {
  Extent extent;
  Rule rule;
  LeakSource leak;
  const S* x;
  const float* v_init;
  const float* checkpoints;
  const S* grad_spikes;
  const float* grad_v;
  const float* grad_sam;
  float map_share;  // of one spike in its location's mean
  MapAccess map_access;
  InputGradient<S> output;
  float* grad_v_init;
  double* leak_sums;  // null: not wanted; else one sum for W neighbours, or one for each
  bool leak_sum_each;
};

// The potentials of a chunk, in shared memory that no other thread reads.
template <int W>
class History {
  static constexpr int kPart = kFloatsAtOnce<W>;

  CKD_DEVICE float* part(int t, int p) const {
    return reinterpret_cast<float*>(ckd_dynamic_shared) + ((t * (W / kPart) + p) * blockDim.x + threadIdx.x) * kPart;
  }

 public:
  CKD_DEVICE void set(int t, const float (&h)[W]) const {
#pragma unroll
    for (int j = 0; j < W; j += kPart) {
      Pack<float, kPart> pack;
#pragma unroll
      for (int i = 0; i < kPart; ++i) pack.lane[i] = h[j + i];
      store<kPart>(part(t, j / kPart), pack);
    }
  }
  CKD_DEVICE void get(int t, float (&h)[W]) const {
#pragma unroll
    for (int j = 0; j < W; j += kPart) {
      const Pack<float, kPart> pack = load<kPart>(part(t, j / kPart));
#pragma unroll
      for (int i = 0; i < kPart; ++i) h[j + i] = pack.lane[i];
    }
  }
};

// What only some calls need, and what costs the others registers: a leak of each neighbour's own and its gradient,
// a repeated frame, a delayed reset that carries gradients.
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

// One vector of W neighbours through all chunks.
template <class S, int W, bool kGeneral>
class BackwardVector {
  using LeakOf = Leak<W, kGeneral>;
  const BackwardCall<S>& call;
  const Extent& e;
  const Constants<float>& k;
  const History<W> history{};
  const Place place;
  const int64_t neuron;
  const LeakOf leak, keep;
  float gv[W];
  Extras<W, kGeneral> extras;

  // The potential before step `first` of a chunk.
  CKD_DEVICE void start_of(int first, float (&v)[W]) const {
    if (first > 0) {
      load_floats(call.checkpoints + (first / kCheckpointEvery - 1) * e.neurons() + neuron, v);
    } else if (call.v_init) {
      load_floats(call.v_init + neuron, v);
    } else {
      fill(k.rest, v);
    }
  }

  CKD_DEVICE int64_t input_at(int t) const { return e.input(place) + (kGeneral && e.repeated ? 0 : t * e.frame); }

  CKD_DEVICE void recompute(int first, int steps) const {
    int64_t at = input_at(first);
    Pack<S, W> next = load<W>(call.x + at);
    float v[W];
    start_of(first, v);
    with_dynamics(call.rule, [&](auto dynamics) {
      using D = decltype(dynamics);
#pragma unroll 1
      for (int t = 0; t < steps; ++t) {
        const Pack<S, W> now = next;
        if (t + 1 < steps && !(kGeneral && e.repeated)) {
          at += e.frame;
          next = load<W>(call.x + at);
        }
        float x[W], h[W];
        widen(now, x);
#pragma unroll
        for (int j = 0; j < W; ++j) {
          h[j] = potential<D::charge, D::reset>(v[j], x[j], leak[j], k);
          v[j] = after_reset<D::reset>(h[j], k);
        }
        history.set(t, h);
      }
    });
  }

  CKD_DEVICE void add_map_gradient(float (&gs)[W]) const {
    if (call.map_access == MapAccess::kNone) return;
    Walk walk(e, place);
    const float* from = call.grad_sam + walk.location(e);
    float gradient[W];
    if (call.map_access == MapAccess::kOneValue) {
      fill(*from, gradient);
    } else if (call.map_access == MapAccess::kContiguous) {
      load_floats(from, gradient);
    } else {
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
    with_surrogate(call.rule.surrogate, [&](auto kind) {
#pragma unroll
      for (int j = 0; j < W; ++j) sg[j] = decltype(kind)::derivative(h[j] - k.threshold, k.c0, k.c1);
    });
  }

  template <Through G>
  CKD_DEVICE void past_reset(const float (&h)[W], const float (&sg)[W], float (&g)[W]) const {
#pragma unroll
    for (int j = 0; j < W; ++j) g[j] = fire_backward<G>(h[j], g[j], gv[j], sg[j], k);
  }

  // From dL/ds[t] to dL/dh[t], in place.
  CKD_DEVICE void through_firing(const float (&h)[W], float (&g)[W]) const {
    float sg[W];
    surrogate(h, sg);
    switch (call.rule.through) {
      case Through::kHard:
        return past_reset<Through::kHard>(h, sg, g);
      case Through::kHardDetached:
        return past_reset<Through::kHardDetached>(h, sg, g);
      case Through::kSubtract:
        return past_reset<Through::kSubtract>(h, sg, g);
      case Through::kSubtractDetached:
        return past_reset<Through::kSubtractDetached>(h, sg, g);
    }
  }

  CKD_DEVICE void add_leak_gradient(int first, int t, const float (&gh)[W]) {
    float before[W], x[W];
    if (t == 0) start_of(first, before);
    if (t > 0) history.get(t - 1, before);
    widen(load<W>(call.x + input_at(first + t)), x);
    with_dynamics(call.rule, [&](auto dynamics) {
      using D = decltype(dynamics);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float v = t == 0 ? before[j] : after_reset<D::reset>(before[j], k);
        extras.leak_sum[j] += grad_leak<D::charge>(gh[j], v, x[j], leak[j], k.rest);
      }
    });
  }

  CKD_DEVICE void back(int first, int steps, Pack<S, W> next) {
    int64_t at = e.sequence(place) + (first + steps - 1) * e.frame;
#pragma unroll 1
    for (int t = steps - 1; t >= 0; --t) {
      const Pack<S, W> now = next;
      if (t > 0 && call.grad_spikes) next = load<W>(call.grad_spikes + at - e.frame);
      float h[W], g[W];
      history.get(t, h);
      widen(now, g);
      add_map_gradient(g);
      if constexpr (kGeneral) {
        if (call.rule.delayed) {
#pragma unroll
          for (int j = 0; j < W; ++j) g[j] = g[j] - extras.pending[j];
        }
      }
      through_firing(h, g);
      if constexpr (kGeneral) {
        if (call.rule.delayed) {
#pragma unroll
          for (int j = 0; j < W; ++j) extras.pending[j] = g[j] * k.drop_later;
        }
        if (call.leak_sums) add_leak_gradient(first, t, g);
      }
#pragma unroll
      for (int j = 0; j < W; ++j) gv[j] = g[j] * keep[j];
      if (call.rule.charge == Charge::kLeakInput) {
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] = grad_input<Charge::kLeakInput>(g[j], leak[j]);
      }
      if (kGeneral && e.repeated) {
        if constexpr (kGeneral) {
#pragma unroll
          for (int j = 0; j < W; ++j) extras.input_sum[j] += g[j];
        }
      } else {
        call.output.template store<W>(at, g);
      }
      at -= e.frame;
    }
  }

  CKD_DEVICE void finish() {
    if constexpr (kGeneral) {
      if (e.repeated) call.output.template store<W>(e.input(place), extras.input_sum);
    }
    if (call.grad_v_init) {
      if constexpr (kGeneral) {
        if (call.rule.delayed) {
          float v[W], sg[W];
          start_of(0, v);
          surrogate(v, sg);
#pragma unroll
          for (int j = 0; j < W; ++j) gv[j] = gv[j] - extras.pending[j] * sg[j];
        }
      }
      store_floats(call.grad_v_init + neuron, gv);
    }
    if constexpr (kGeneral) {
      if (call.leak_sums && call.leak_sum_each) {
#pragma unroll
        for (int j = 0; j < W; ++j) call.leak_sums[neuron + j] = extras.leak_sum[j];
      } else if (call.leak_sums) {
        double sum = 0;
#pragma unroll
        for (int j = 0; j < W; ++j) sum += extras.leak_sum[j];
        call.leak_sums[neuron / W] = sum;
      }
    }
  }

 public:
  CKD_DEVICE BackwardVector(const BackwardCall<S>& call, int64_t neuron, const Place& place)
      : call(call),
        e(call.extent),
        k(call.rule.k),
        place(place),
        neuron(neuron),
        leak(call.leak, e, place),
        keep(leak.keep(call.rule.charge)) {}

  CKD_DEVICE void run() {
    if (call.grad_v) {
      load_floats(call.grad_v + neuron, gv);
    } else {
      fill(0.0f, gv);
    }
    for (int first = (e.steps - 1) / kCheckpointEvery * kCheckpointEvery; first >= 0; first -= kCheckpointEvery) {
      const int left = e.steps - first, steps = left < kCheckpointEvery ? left : kCheckpointEvery;
      // In flight while the potentials are computed.
      Pack<S, W> last = {};
      if (call.grad_spikes) last = load<W>(call.grad_spikes + e.sequence(place) + (first + steps - 1) * e.frame);
      recompute(first, steps);
      back(first, steps, last);
    }
    finish();
  }
};

template <class S, int W, bool kGeneral>
__global__ void __launch_bounds__(256) lif_backward_kernel(const __grid_constant__ BackwardCall<S> call) {
  for_each_neuron<W>(call.extent, [&](int64_t neuron, const Place& place) {
    BackwardVector<S, W, kGeneral>(call, neuron, place).run();
  });
}

}  // namespace ckd::cuda
