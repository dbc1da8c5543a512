// The first pass back through batch normalisation: sums of dL/dx and dL/dx*(y - mean) for each channel.
#pragma once
#include "channels.cuh"
#include "lif_backward.cuh"
#include "normalise.cuh"

namespace ckd::cuda {

template <class S>
struct ReduceCall {
  BackwardCall<NormalisedCurrent<S>, NormalisedGradientSums<S>> backward;
  ChannelCut cut;  // planes: outer, rows
};

template <class S, int W, class NeuronKind, int kSteps, bool kGeneral, template <int> class Channels>
__global__ void __launch_bounds__(kBackwardThreads, (kBackwardBlocks<NeuronKind, kGeneral>))
    bn_reduce_kernel(const __grid_constant__ ReduceCall<S> call) {
  using C = Channels<W>;
  using Vector = BackwardVector<decltype(call.backward), W, NeuronKind, kSteps, C::kChannelsInside, kGeneral>;
  const Extent& e = call.backward.extent;
  const ChannelShare share = C::share(call.cut);
  C::template sum<1>(
      call.cut, share,
      [&](int64_t plane, int64_t column) {
        const Parts row = e.outer == 1 ? Parts{0, plane} : split(plane, e.rows);
        return e.place(row.quotient, (row.remainder * e.channels + share.channel) * e.inner + column);
      },
      [&](const Place& place, double (&values)[C::kValues]) {
        Vector vector(call.backward, place);
        vector.run();
#pragma unroll
        for (int j = 0; j < W; ++j) {
          C::accumulate(values, j, vector.gradient.gradient.sum[j], vector.gradient.product.sum[j]);
        }
      });
}

struct SumsCall {
  ChannelCut cut;
  double* sums;  // [2, channels]

  CKD_DEVICE void finish(int64_t channel, double gradient, double product) const {
    sums[channel] = gradient;
    sums[cut.channels + channel] = product;
  }
};

}  // namespace ckd::cuda
