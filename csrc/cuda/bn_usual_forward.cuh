// The usual neurons forward, from statistics that were folded before or, all at once, from their own.
#pragma once
#include "bn_statistics.cuh"
#include "bn_usual.cuh"
#include "ckd/normalisation.h"

namespace ckd::cuda {

template <class S>
struct UsualForwardCall : UsualInput<S> {
  S* spikes;
  // Of all at once; else there is no y in it.
  StatisticsCall<S> statistics;
  BatchFold fold;
};

inline constexpr unsigned kUsualForwardThreads = kStatisticsThreads;

// Vectors at a time in the forward pass.
template <int kSteps>
inline constexpr int kUsualForwardBatch = kSteps == 1 ? 4 : 1;

template <class S, int kSteps, bool kResidual, template <int> class Channels>
CKD_DEVICE void fire_block(const UsualForwardCall<S>& call, unsigned block) {
  constexpr int W = kWide<S>;
  using C = Channels<W>;
  struct Packets {
    int64_t at;
    Pack<S, W> y[kSteps], residual[kResidual ? kSteps : 1];
  };
  const ChannelShare share = C::share(call.cut, block);
  if (!share.any) return;
  const ChannelConstants<W, C::kChannelsInside> scale(call.scale, share.channel), shift(call.shift, share.channel);
  const Rule& rule = call.rule;
  Leak<W, false> leak;
  fill(call.leak, leak.value);
  const int64_t frame = call.extent.frame;
  C::template visit<kUsualForwardBatch<kSteps>, false, true>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        Packets packets{};
        packets.at = call.extent.place(plane, share.channel, column).sequence;
#pragma unroll
        for (int t = 0; t < kSteps; ++t) {
          packets.y[t] = load<W>(call.y + packets.at + t * frame);
          if constexpr (kResidual) packets.residual[t] = load<W>(call.residual + packets.at + t * frame);
        }
        return packets;
      },
      [&](const Packets& packets) {
        with_dynamics<true>(rule, [&](auto dynamics) {
          using D = decltype(dynamics);
          float v[W];
          fill(rule.k.rest, v);
#pragma unroll
          for (int t = 0; t < kSteps; ++t) {
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

template <class S, int kSteps, bool kResidual, template <int> class Channels>
__global__ void __launch_bounds__(kUsualForwardThreads, 3)
    bn_usual_forward_kernel(const __grid_constant__ UsualForwardCall<S> call) {
  const bool all_at_once = call.statistics.y != nullptr;
  if (all_at_once) {
    const ChannelCut& cut = call.statistics.cut;
    visit_blocks(cut.blocks,
                 [&](unsigned block) { statistics_of_block<S, kWide<S>, Channels>(call.statistics, block); });
    wait_for_grid();
    add_slices_of_grid(cut, [&](int64_t channel, double sum, double squares) {
      call.statistics.moments_of(channel, sum, squares, [&](double mean, double variance) {
        fold_channel<float>(call.fold, channel, mean, variance);
      });
    });
    wait_for_grid();
  } else {
    wait_for_previous();
  }
  visit_blocks_back(call.cut.blocks, [&](unsigned block) {
    fire_block<S, kSteps, kResidual, Channels>(call, all_at_once ? block : gridDim.x - 1 - block);
  });
}

}  // namespace ckd::cuda
