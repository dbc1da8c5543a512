// Multi-step neurons backward: a thread runs W neighbours forward again from x, keeping a chunk's potentials on chip,
// then backward through time: the last chunk first, each from its checkpoint, the potential that the forward pass
// stored.
#pragma once
#include "current.cuh"
#include "derivative.cuh"
#include "launch.h"
#include "rule.cuh"

namespace ckd::cuda {

// How the gradient of the spike activation map lies for W neighbours.
enum class MapAccess : int { kNone, kOneValue, kContiguous, kScattered };

template <class CurrentOf, class GradientOf>
struct BackwardCall {
  using Current = CurrentOf;
  using Gradient = GradientOf;
  using S = typename Current::Storage;
  Extent extent;
  Rule rule;
  LeakSource leak;
  Current current;
  const float* v_init;
  const float* checkpoints;
  const S* grad_spikes;
  const float* grad_v;
  const float* grad_sam;
  float map_share;  // of one spike in its location's mean
  MapAccess map_access;
  Gradient gradient;
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

// kGeneral: the general path, for what few calls need and what would cost the others registers: the leak's gradient, a
// delayed reset that carries gradients, a leak or a map value for each neighbour, and a repeated frame.
template <int W, bool kGeneral>
struct Extras {
  float pending[W];
  TimeSum<W, true> leak;
  CKD_DEVICE Extras() { fill(0.0f, pending); }
};
template <int W>
struct Extras<W, false> {};

// W neighbours through all chunks. kEach: neighbours need not be of one channel.
template <class Call, int W, class NeuronKind, int kSteps, bool kEach, bool kGeneral>
class BackwardVector {
  using S = typename Call::S;
  using Current = typename Call::Current::template At<W, kEach>;
  using Gradient = typename Call::Gradient::template At<W, kEach, kGeneral>;
  using LeakOf = Leak<W, kEach && kGeneral>;
  // Where much is computed, or much is held for each step, two steps at a time: fewer registers, and half the code.
  static constexpr bool kHoldsMuch = Call::Gradient::kNeedsInput && std::is_same_v<NeuronKind, AnyNeuron>;
  static constexpr int kRunTimeGroup = kGeneral || kHoldsMuch ? 2 : 4;
  template <class Source, bool kBackward>
  using StreamOf = Stream<Source, kSteps, kBackward, kRunTimeGroup>;
  using Input = StreamOf<typename Current::Packets, false>;
  static constexpr int kGroup = Input::kGroup;
  const Call& call;
  const Extent& e;
  const Rule& rule;
  const Constants<float>& k;
  const Place place;
  const Current current;
  const LeakOf leak, keep;
  History<W, kSteps> history;
  float map[W], gv[W];
  Extras<W, kGeneral> extras;

  // Of a chunk: how many steps its loops go over, and whether it has step t.
  CKD_DEVICE static int span(int steps) { return kSteps > 0 ? kSteps : steps; }
  CKD_DEVICE static bool inside(int t, int steps) {
    return kSteps > 0 ? has_step<kSteps>(t, steps) : t >= 0 && t < steps;
  }

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

  CKD_DEVICE void recompute(int first, int steps, Input& input) {
    float v[W];
    start_of(first, v);
    NeuronKind::dynamics(rule, [&](auto dynamics) {
      using D = decltype(dynamics);
#pragma unroll 1
      for (int begin = 0; begin < span(steps); begin += kGroup) {
        const auto& packets = input.take();
#pragma unroll
        for (int i = 0; i < kGroup; ++i) {
          if (!inside(begin + i, steps)) break;
          float x[W], h[W];
          current.values(packets[i], x);
          D::charge(v, x, leak, rule, h);
#pragma unroll
          for (int j = 0; j < W; ++j) v[j] = D::after_reset(h[j], rule);
          history.set(begin + i, h);
        }
      }
    });
  }

  // What each spike's gradient gets from the map.
  CKD_DEVICE void load_map() {
    if (call.map_access == MapAccess::kNone) return;
    Walk walk(place);
    const float* first = call.grad_sam + walk.location(e);
    if (call.map_access == MapAccess::kContiguous) {
      load_floats(first, map);
    } else if (!kGeneral || call.map_access == MapAccess::kOneValue) {
      fill(*first, map);
    } else {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        map[j] = call.grad_sam[walk.location(e)];
        walk.next(e);
      }
    }
#pragma unroll
    for (int j = 0; j < W; ++j) map[j] = map[j] * call.map_share;
  }

  CKD_DEVICE void add_map_gradient(float (&gs)[W]) const {
    if (call.map_access == MapAccess::kNone) return;
#pragma unroll
    for (int j = 0; j < W; ++j) gs[j] = gs[j] + map[j];
  }

  // Derivatives of a group of steps at once, so that a neuron known at run time is dispatched once for all of them;
  // the steps are `last` and those before it.
  template <int kCount>
  CKD_DEVICE void surrogate(int last, int steps, const float (&h)[kCount][W], float (&sg)[kCount][W]) const {
    NeuronKind::surrogate(rule, [&](auto kind) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (kSteps == 0 || inside(last - i, steps)) derivatives<decltype(kind)>(h[i], k, sg[i]);
      }
    });
  }

  // From dL/ds[t] to dL/dh[t], in place.
  CKD_DEVICE void through_firing(const float (&h)[W], const float (&sg)[W], float (&g)[W]) const {
    NeuronKind::reset_gradient(rule, [&](auto kind) {
#pragma unroll
      for (int j = 0; j < W; ++j) g[j] = decltype(kind)::back(h[j], g[j], gv[j], sg[j], k);
    });
  }

  CKD_DEVICE void add_leak_gradient(int first, int t, const float (&gh)[W]) {
    float before[W], x[W], terms[W];
    if (t == 0) start_of(first, before);
    if (t > 0) history.get(t - 1, before);
    current.values(current.from(first + t).load(), x);
    if (t > 0) {
      NeuronKind::dynamics(rule, [&](auto dynamics) {
#pragma unroll
        for (int j = 0; j < W; ++j) before[j] = decltype(dynamics)::after_reset(before[j], rule);
      });
    }
#pragma unroll
    for (int j = 0; j < W; ++j) terms[j] = leak_gradient(gh[j], before[j], x[j], leak[j], rule);
    extras.leak.add(terms);
  }

  // From dL/dh[t] to the gradients of the input, in place, and of v[t-1].
  CKD_DEVICE void through_charge(float (&g)[W]) {
#pragma unroll
    for (int j = 0; j < W; ++j) gv[j] = g[j] * keep[j];
    NeuronKind::input_gradient(g, leak, rule);
  }

  // What the current has stored, last step first: loaded again, or nothing where the gradient does not need it.
  struct Nothing {
    CKD_DEVICE PacketGroup<Pack<S, W>, kGroup> take() const { return {}; }
  };
  CKD_DEVICE auto stored_again(int last, int steps) const {
    if constexpr (!Call::Gradient::kNeedsInput) {
      return Nothing();
    } else {
      return StreamOf<Series<S, W>, true>(current.stored_back_from(last), steps);
    }
  }

  // One time step backward, from dL/ds[t] in g.
  CKD_DEVICE void step_back(int first, int t, const float (&h)[W], const float (&sg)[W], const Pack<S, W>& stored,
                            float (&g)[W]) {
    add_map_gradient(g);
    if constexpr (kGeneral) {
      if (rule.delayed) {
#pragma unroll
        for (int j = 0; j < W; ++j) g[j] = g[j] - extras.pending[j];
      }
    }
    through_firing(h, sg, g);
    if constexpr (kGeneral) {
      if (rule.delayed) {
#pragma unroll
        for (int j = 0; j < W; ++j) extras.pending[j] = g[j] * k.drop_later;
      }
      if (call.leak_sums) add_leak_gradient(first, t, g);
    }
    through_charge(g);
    gradient.add(current, stored, g);
  }

  CKD_DEVICE void run_chunk(int first, int steps) {
    const int last = first + span(steps) - 1;
    Input input(current.from(first), steps);
    StreamOf<Series<S, W>, true> upstream(
        {call.grad_spikes ? call.grad_spikes + place.sequence + last * e.frame : nullptr, -e.frame}, steps);
    recompute(first, steps, input);
    auto again = stored_again(last, steps);
#pragma unroll 1
    for (int done = 0; done < span(steps); done += kGroup) {
      const int latest = span(steps) - 1 - done;
      const auto& packets = upstream.take();
      const auto stored = again.take();
      float h[kGroup][W], sg[kGroup][W];
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (inside(latest - i, steps)) {
          history.get(latest - i, h[i]);
        } else {
          fill(0.0f, h[i]);
        }
      }
      surrogate(latest, steps, h, sg);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        if (!inside(latest - i, steps)) continue;
        float g[W];
        widen(packets[i], g);
        step_back(first, latest - i, h[i], sg[i], stored[i], g);
      }
    }
  }

  CKD_DEVICE void finish() {
    gradient.finish(current);
    if (call.grad_v_init) {
      if constexpr (kGeneral) {
        if (rule.delayed) {
          float v[1][W], sg[1][W];
          start_of(0, v[0]);
          surrogate(0, 1, v, sg);
#pragma unroll
          for (int j = 0; j < W; ++j) gv[j] = gv[j] - extras.pending[j] * sg[0][j];
        }
      }
      store_floats(call.grad_v_init + place.state, gv);
    }
    if constexpr (kGeneral) {
      if (call.leak_sums && call.leak_sum_each) {
#pragma unroll
        for (int j = 0; j < W; ++j) call.leak_sums[place.state + j] = extras.leak.sum[j];
      } else if (call.leak_sums) {
        double sum = 0;
#pragma unroll
        for (int j = 0; j < W; ++j) sum += extras.leak.sum[j];
        call.leak_sums[place.state / W] = sum;
      }
    }
  }

 public:
  Gradient gradient;

  CKD_DEVICE BackwardVector(const Call& call, const Place& place)
      : call(call),
        e(call.extent),
        rule(call.rule),
        k(call.rule.k),
        place(place),
        current(call.current, e, place),
        leak(call.leak, e, place),
        keep(leak.keep(rule.charge)),
        gradient(call.gradient, e, place) {}

  CKD_DEVICE void run() {
    load_map();
    if (call.grad_v) {
      load_floats(call.grad_v + place.state, gv);
    } else {
      fill(0.0f, gv);
    }
    if constexpr (kSteps > 0) {
      run_chunk(0, kHasExponential<NeuronKind> ? kSteps : e.steps);
    } else {
#pragma unroll 1
      for (int first = (e.steps - 1) / kCheckpointEvery * kCheckpointEvery; first >= 0; first -= kCheckpointEvery) {
        const int left = e.steps - first;
        run_chunk(first, left < kCheckpointEvery ? left : kCheckpointEvery);
      }
    }
    finish();
  }
};

// Blocks that a multiprocessor should have registers for.
template <class NeuronKind, bool kGeneral>
inline constexpr int kBackwardBlocks = kGeneral                                ? 1
                                       : std::is_same_v<NeuronKind, AnyNeuron> ? 3
                                                                               : 4;

template <class Call, int W, class NeuronKind, int kSteps, bool kEach, bool kGeneral>
__global__ void __launch_bounds__(kBackwardThreads, (kBackwardBlocks<NeuronKind, kGeneral>))
    lif_backward_kernel(const __grid_constant__ Call call) {
  const int64_t neuron = first_neuron<W>();
  if (neuron >= call.extent.neurons) return;
  BackwardVector<Call, W, NeuronKind, kSteps, kEach, kGeneral>(call, call.extent.place(neuron)).run();
}

}  // namespace ckd::cuda
