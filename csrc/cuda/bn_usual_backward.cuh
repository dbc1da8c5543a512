// The usual neurons backward: sums over a channel, then what follows from them applied to dL/dx; one after the other,
// or all at once.
#pragma once
#include "bn_usual.cuh"
#include "ckd/normalisation.h"

namespace ckd::cuda {

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
  float map_share;                 // of one spike in its location's mean
  bool first, second;              // the passes; both: all at once
  BatchCoefficients coefficients;  // of both
};

// What is read of W neighbours. kExtras: there may be a residual and a map.
template <class S, int W, int kSteps, bool kExtras>
struct UsualPackets {
  int64_t at, location;  // in tensors of all time steps, and in the map
  Pack<S, W> y[kSteps], grad_spikes[kSteps], residual[kExtras ? kSteps : 1];
};

template <class S, int W, int kSteps, bool kExtras>
CKD_DEVICE UsualPackets<S, W, kSteps, kExtras> usual_packets(const UsualCall<S>& call, const Place& place) {
  UsualPackets<S, W, kSteps, kExtras> packets{};
  packets.at = place.sequence;
  if constexpr (kExtras) packets.location = place.row * call.extent.inner + place.column;
  const int64_t frame = call.extent.frame;
#pragma unroll
  for (int t = 0; t < kSteps; ++t) packets.y[t] = load<W>(call.y + place.sequence + t * frame);
#pragma unroll
  for (int t = kSteps - 1; t >= 0; --t) packets.grad_spikes[t] = load<W>(call.grad_spikes + place.sequence + t * frame);
  if constexpr (kExtras) {
    if (call.residual) {
#pragma unroll
      for (int t = 0; t < kSteps; ++t) packets.residual[t] = load<W>(call.residual + place.sequence + t * frame);
    }
  }
  return packets;
}

// Forward again from what was read, and back through time; step(t, y, dL/dx) with the last step first.
template <class NeuronKind, bool kEach, class S, int W, int kSteps, bool kExtras, class Step>
CKD_DEVICE void usual_way_back(const UsualCall<S>& call, const UsualPackets<S, W, kSteps, kExtras>& packets,
                               const ChannelConstants<W, kEach>& scale, const ChannelConstants<W, kEach>& shift,
                               Step&& step) {
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
          float y[W], g[W];
          widen(packets.y[t], y);
          widen(packets.grad_spikes[t], g);
#pragma unroll
          for (int j = 0; j < W; ++j) {
            if constexpr (kExtras) g[j] = g[j] + map[j];
            const float sg = decltype(kind)::derivative(h[t][j] - k.threshold, k.c0, k.c1);
            g[j] = decltype(reset)::back(h[t][j], g[j], gv[j], sg, k);
            gv[j] = g[j] * keep[j];
          }
          D::input_gradient(g, leak, rule);
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

template <class S, int W, class NeuronKind, int kSteps, bool kExtras, template <int> class Channels>
CKD_DEVICE void sum_block(const UsualCall<S>& call, unsigned block) {
  using C = Channels<W>;
  constexpr bool kEach = C::kChannelsInside;
  constexpr int kFlush = 16 / kSteps;  // vectors whose terms are added in float
  const ChannelShare share = C::share(call.cut, block);
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
  C::template visit<kUsualBatch<S, W, kSteps>, true, false>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        return usual_packets<S, W, kSteps, kExtras>(call, call.extent.place(plane, channel, column));
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
CKD_DEVICE void apply_to_block(const UsualCall<S>& call, unsigned block) {
  using C = Channels<W>;
  constexpr bool kEach = C::kChannelsInside;
  const ChannelShare share = C::share(call.cut, block);
  if (!share.any) return;
  const int64_t channel = share.channel;
  const ChannelConstants<W, kEach> scale(call.scale, channel), shift(call.shift, channel), mean(call.mean, channel),
      offset(call.offset, channel), slope(call.slope, channel);
  C::template visit<kUsualBatch<S, W, kSteps>, true, true>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        return usual_packets<S, W, kSteps, kExtras>(call, call.extent.place(plane, channel, column));
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

// Blocks that a multiprocessor should have registers for.
template <int W, int kSteps, bool kExtras>
inline constexpr int kUsualBlocks = W > 4 || kExtras ? 3 : 4;

template <class S, int W, class NeuronKind, int kSteps, bool kExtras, template <int> class Channels>
__global__ void __launch_bounds__(kBackwardThreads, (kUsualBlocks<W, kSteps, kExtras>))
    bn_usual_backward_kernel(const __grid_constant__ UsualCall<S> call) {
  if (call.first) {
    if (!call.second) let_next_begin();
    visit_blocks(call.cut.blocks,
                 [&](unsigned block) { sum_block<S, W, NeuronKind, kSteps, kExtras, Channels>(call, block); });
    if (!call.second) return;
    wait_for_grid();
    add_slices_of_grid(call.cut, [&](int64_t channel, double gradient, double product) {
      coefficients_of_channel<float>(call.coefficients, channel, gradient, product);
    });
    wait_for_grid();
  } else {
    wait_for_previous();
  }
  visit_blocks_back(call.cut.blocks, [&](unsigned block) {
    apply_to_block<S, W, NeuronKind, kSteps, kExtras, Channels>(call, call.first ? block : gridDim.x - 1 - block);
  });
}

}  // namespace ckd::cuda
