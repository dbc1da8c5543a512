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

template <class S, int W, bool kGeneral, template <int> class Channels>
__global__ void __launch_bounds__(kBackwardThreads, (kBackwardBlocks<AnyNeuron, kGeneral>))
    bn_reduce_kernel(const __grid_constant__ ReduceCall<S> call) {
  using C = Channels<W>;
  using Vector = BackwardVector<decltype(call.backward), W, AnyNeuron, 0, C::kChannelsInside, kGeneral>;
  const Extent& e = call.backward.extent;
  const ChannelShare share = C::share(call.cut, blockIdx.x);
  let_next_begin();
  typename C::Sums sums(call.cut);
  C::template visit<1, false>(
      call.cut, share, [&](int64_t plane, int64_t column) { return e.place(plane, share.channel, column); },
      [&](const Place& place) {
        Vector vector(call.backward, place);
        vector.run();
        sums.add(vector.gradient.gradient.sum, vector.gradient.product.sum);
      });
  sums.store(call.cut, share);
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
