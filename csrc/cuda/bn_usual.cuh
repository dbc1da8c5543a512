// Batch normalisation and neuron as most networks ask for them: 1 to 4 steps, no state before or after, and on the way
// back a neuron that a kernel is compiled for. A thread keeps its channels' constants and visits W neighbours at a
// time, with all that it reads of them in flight; lif_forward.cuh, lif_backward.cuh and bn_reduce.cuh serve every other
// call.
#pragma once
#include "channels.cuh"
#include "derivative.cuh"
#include "launch.h"
#include "rule.cuh"
#include "series.cuh"

namespace ckd::cuda {

// What all passes need.
template <class S>
struct UsualInput {
  ChannelCut cut;  // planes: outer, rows
  Extent extent;
  Rule rule;
  float leak;
  const S* y;
  const float* scale;
  const float* shift;
  const S* residual;  // null: none
};

template <class S>
struct UsualForwardCall : UsualInput<S> {
  S* spikes;
};

template <class S>
struct UsualCall : UsualInput<S> {
  const S* grad_spikes;
  const float* mean;
  // Of the second pass.
  const float* offset;
  const float* slope;
  S* grad_y;
  // Null where not given or not wanted; these and the residual are without kExtras.
  S* grad_residual;
  const float* grad_sam;
  float map_share;  // of one spike in its location's mean
};

// Of a vector with one value a channel, what W neighbours need.
template <int W, bool kEach>
struct ChannelConstants {
  float value[kEach ? W : 1];
  CKD_DEVICE ChannelConstants(const float* values, int64_t channel) { load_floats(values + channel, value); }
  CKD_DEVICE float operator[](int j) const { return value[kEach ? j : 0]; }
};

inline constexpr unsigned kUsualForwardThreads = 256;

// Vectors at a time in the forward pass.
template <int kSteps>
inline constexpr int kUsualForwardBatch = kSteps == 1 ? 4 : 1;

template <class S, int kSteps, bool kResidual, template <int> class Channels>
__global__ void __launch_bounds__(kUsualForwardThreads, kResidual                      ? 2
                                                        : Channels<1>::kChannelsInside ? 3
                                                                                       : 4)
    bn_usual_forward_kernel(const __grid_constant__ UsualForwardCall<S> call) {
  constexpr int W = kWide<S>;
  using C = Channels<W>;
  struct Packets {
    int64_t at;
    Pack<S, W> y[kSteps], residual[kResidual ? kSteps : 1];
  };
  const ChannelShare share = C::share(call.cut, last_block_first());
  wait_for_previous();
  if (!share.any) return;
  const ChannelConstants<W, C::kChannelsInside> scale(call.scale, share.channel), shift(call.shift, share.channel);
  const Rule& rule = call.rule;
  Leak<W, false> leak;
  fill(call.leak, leak.value);
  const int64_t frame = call.extent.frame;
  C::template visit<kUsualForwardBatch<kSteps>, false>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        Packets packets{};
        packets.at = call.extent.place(plane, share.channel, column).sequence;
#pragma unroll
        for (int t = 0; t < kSteps; ++t) {
          if (!has_step<kSteps>(t, call.extent.steps)) break;
          packets.y[t] = load<W>(call.y + packets.at + t * frame);
          if constexpr (kResidual) packets.residual[t] = load<W>(call.residual + packets.at + t * frame);
        }
        return packets;
      },
      [&](const Packets& packets) {
        with_dynamics<CompiledIn::kUsual>(rule, [&](auto dynamics) {
          using D = decltype(dynamics);
          float v[W];
          fill(rule.k.rest, v);
#pragma unroll
          for (int t = 0; t < kSteps; ++t) {
            if (!has_step<kSteps>(t, call.extent.steps)) break;
            float x[W], spikes[W];
            widen(packets.y[t], x);
#pragma unroll
            for (int j = 0; j < W; ++j) x[j] = x[j] * scale[j] + shift[j];
            if constexpr (kResidual) {
              float residual[W];
              widen(packets.residual[t], residual);
#pragma unroll
              for (int j = 0; j < W; ++j) x[j] = x[j] + residual[j];
            }
            float h[W];
            D::charge(v, x, leak, rule, h);
#pragma unroll
            for (int j = 0; j < W; ++j) {
              spikes[j] = h[j] >= rule.k.fire_level ? 1.0f : 0.0f;
              v[j] = D::after_reset(h[j], rule);
            }
            store(call.spikes + packets.at + t * frame, narrow<S>(spikes));
          }
        });
      });
}

// What is read of W neighbours. kExtras: there may be a residual and a map.
template <class S, int W, int kSteps, bool kExtras>
struct UsualPackets {
  int64_t at, location;  // in tensors of all time steps, and in the map
  Pack<S, W> y[kSteps], grad_spikes[kSteps], residual[kExtras ? kSteps : 1];
};

template <class NeuronKind, int kSteps, class S>
CKD_DEVICE int usual_steps(const UsualCall<S>& call) {
  return kHasExponential<NeuronKind> ? kSteps : call.extent.steps;
}

template <class S, int W, int kSteps, bool kExtras>
CKD_DEVICE UsualPackets<S, W, kSteps, kExtras> usual_packets(const UsualCall<S>& call, const Place& place, int steps) {
  UsualPackets<S, W, kSteps, kExtras> packets{};
  packets.at = place.sequence;
  if constexpr (kExtras) packets.location = place.row * call.extent.inner + place.column;
  const int64_t frame = call.extent.frame;
#pragma unroll
  for (int t = 0; t < kSteps; ++t) {
    if (has_step<kSteps>(t, steps)) packets.y[t] = load<W>(call.y + place.sequence + t * frame);
  }
#pragma unroll
  for (int t = kSteps - 1; t >= 0; --t) {
    if (has_step<kSteps>(t, steps)) packets.grad_spikes[t] = load<W>(call.grad_spikes + place.sequence + t * frame);
  }
  if constexpr (kExtras) {
    if (call.residual) {
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        if (has_step<kSteps>(t, steps)) packets.residual[t] = load<W>(call.residual + place.sequence + t * frame);
      }
    }
  }
  return packets;
}

// Forward again from what was read, and back through time; step(t, y, dL/dx) with the last step first.
template <class NeuronKind, bool kEach, class S, int W, int kSteps, bool kExtras, class Step>
CKD_DEVICE void usual_way_back(const UsualCall<S>& call, const UsualPackets<S, W, kSteps, kExtras>& packets,
                               const ChannelConstants<W, kEach>& scale, const ChannelConstants<W, kEach>& shift,
                               Step&& step) {
  const int steps = usual_steps<NeuronKind, kSteps>(call);
  const Rule& rule = call.rule;
  const Constants<float>& k = rule.k;
  Leak<W, false> leak;
  fill(call.leak, leak.value);
  const Leak<W, false> keep = leak.keep(rule.charge);
  float map[W] = {};
  if constexpr (kExtras) {
    if (call.grad_sam) {
      const float* from = call.grad_sam + packets.location;
      if constexpr (kEach) {
        fill(*from, map);
      } else {
        load_floats(from, map);
      }
#pragma unroll
      for (int j = 0; j < W; ++j) map[j] = map[j] * call.map_share;
    }
  }
  float h[kSteps][W], v[W], gv[W];
  fill(k.rest, v);
  fill(0.0f, gv);
  NeuronKind::dynamics(rule, [&](auto dynamics) {
    using D = decltype(dynamics);
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      if (!has_step<kSteps>(t, steps)) break;
      float x[W];
      widen(packets.y[t], x);
#pragma unroll
      for (int j = 0; j < W; ++j) x[j] = x[j] * scale[j] + shift[j];
      if constexpr (kExtras) {
        if (call.residual) {
          float residual[W];
          widen(packets.residual[t], residual);
#pragma unroll
          for (int j = 0; j < W; ++j) x[j] = x[j] + residual[j];
        }
      }
      D::charge(v, x, leak, rule, h[t]);
#pragma unroll
      for (int j = 0; j < W; ++j) v[j] = D::after_reset(h[t][j], rule);
    }
    NeuronKind::surrogate(rule, [&](auto kind) {
      NeuronKind::reset_gradient(rule, [&](auto reset) {
#pragma unroll
        for (int t = kSteps - 1; t >= 0; --t) {
          if (!has_step<kSteps>(t, steps)) continue;
          float y[W], g[W];
          widen(packets.y[t], y);
          widen(packets.grad_spikes[t], g);
          float sg[W];
          derivatives<decltype(kind)>(h[t], k, sg);
#pragma unroll
          for (int j = 0; j < W; ++j) {
            if constexpr (kExtras) g[j] = g[j] + map[j];
            g[j] = decltype(reset)::back(h[t][j], g[j], gv[j], sg[j], k);
            gv[j] = g[j] * keep[j];
          }
          NeuronKind::input_gradient(g, leak, rule);
          if constexpr (kExtras) {
            if (call.grad_residual) {
              store(call.grad_residual + packets.at + t * call.extent.frame, narrow<S>(g));
            }
          }
          step(t, y, g);
        }
      });
    });
  });
}

// Vectors at a time, so that enough is in flight: of each, y and dL/dspikes.
template <class S, int W, int kSteps>
inline constexpr int kUsualBatch = std::max(1, 64 / (2 * kSteps * W * static_cast<int>(sizeof(S))));

// Blocks that a multiprocessor should have registers for.
template <int kSteps, bool kExtras>
inline constexpr int kUsualBlocks = kExtras       ? 3
                                    : kSteps == 1 ? 5
                                                  : 4;

template <class S, int W, class NeuronKind, int kSteps, bool kExtras, template <int> class Channels>
__global__ void __launch_bounds__(kBackwardThreads, (kUsualBlocks<kSteps, kExtras>))
    bn_usual_reduce_kernel(const __grid_constant__ UsualCall<S> call) {
  using C = Channels<W>;
  constexpr bool kEach = C::kChannelsInside;
  constexpr int kFlush = 16 / kSteps;  // vectors whose terms are added in float
  const ChannelShare share = C::share(call.cut, blockIdx.x);
  let_next_begin();
  const int64_t channel = share.any ? share.channel : 0;
  const ChannelConstants<W, kEach> scale(call.scale, channel), shift(call.shift, channel), mean(call.mean, channel);
  typename C::Sums sums(call.cut);
  float first[W], second[W];
  int held = 0;
  const auto flush = [&] {
    if (held > 0) sums.add(first, second);
    fill(0.0f, first);
    fill(0.0f, second);
    held = 0;
  };
  flush();
  C::template visit<kUsualBatch<S, W, kSteps>, true>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        return usual_packets<S, W, kSteps, kExtras>(call, call.extent.place(plane, channel, column),
                                                    usual_steps<NeuronKind, kSteps>(call));
      },
      [&](const UsualPackets<S, W, kSteps, kExtras>& packets) {
        usual_way_back<NeuronKind, kEach>(call, packets, scale, shift,
                                          [&](int, const float (&y)[W], const float (&g)[W]) {
#pragma unroll
                                            for (int j = 0; j < W; ++j) {
                                              first[j] = first[j] + g[j];
                                              second[j] = second[j] + g[j] * (y[j] - mean[j]);
                                            }
                                          });
        if (++held == kFlush) flush();
      });
  flush();
  sums.store(call.cut, share);
}

template <class S, int W, class NeuronKind, int kSteps, bool kExtras, template <int> class Channels>
__global__ void __launch_bounds__(kBackwardThreads, (kUsualBlocks<kSteps, kExtras>))
    bn_usual_apply_kernel(const __grid_constant__ UsualCall<S> call) {
  using C = Channels<W>;
  constexpr bool kEach = C::kChannelsInside;
  const ChannelShare share = C::share(call.cut, last_block_first());
  wait_for_previous();
  if (!share.any) return;
  const int64_t channel = share.channel;
  const ChannelConstants<W, kEach> scale(call.scale, channel), shift(call.shift, channel), mean(call.mean, channel),
      offset(call.offset, channel), slope(call.slope, channel);
  C::template visit<kUsualBatch<S, W, kSteps>, true>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        return usual_packets<S, W, kSteps, kExtras>(call, call.extent.place(plane, channel, column),
                                                    usual_steps<NeuronKind, kSteps>(call));
      },
      [&](const UsualPackets<S, W, kSteps, kExtras>& packets) {
        usual_way_back<NeuronKind, kEach>(call, packets, scale, shift,
                                          [&](int t, const float (&y)[W], const float (&g)[W]) {
                                            float gy[W];
#pragma unroll
                                            for (int j = 0; j < W; ++j)
                                              gy[j] = ((g[j] - offset[j]) - (y[j] - mean[j]) * slope[j]) * scale[j];
                                            store(call.grad_y + packets.at + t * call.extent.frame, narrow<S>(gy));
                                          });
      });
}

}  // namespace ckd::cuda
