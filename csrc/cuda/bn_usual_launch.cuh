// Launches the usual neurons' backward passes for one storage type; bn_usual_<type>.cu instantiates them.
#pragma once
#include "bn_usual_backward.cuh"
#include "bn_usual_calls.cuh"

namespace ckd::cuda {

template <class S>
UsualCall<S> usual_call(const LifBackward& call, int width, const ChannelSize& size, void* workspace) {
  return {usual_input<S>(call, width, size, workspace),
          static_cast<const S*>(call.grad_spikes),
          static_cast<const float*>(call.mean),
          static_cast<const float*>(call.offset),
          static_cast<const float*>(call.slope),
          static_cast<S*>(call.grad_x),
          static_cast<S*>(call.grad_residual),
          call.grad_sam,
          static_cast<float>(1.0 / static_cast<double>(call.shape.steps * call.shape.channels)),
          true,
          true,
          {}};
}

// Calls launch_one(kernel) with the one that serves a call.
template <int W, class NeuronKind, bool kExtras, template <int> class Channels, class S, class F>
cudaError_t with_usual_backward(const UsualCall<S>& call, F&& launch_one) {
  // usual_width() knows what is left out.
  if constexpr (W == kRunTimeWidth || (Channels<1>::kChannelsInside && !kExtras)) {
    if (call.extent.steps == 4) return launch_one(bn_usual_backward_kernel<S, W, NeuronKind, 4, kExtras, Channels>);
  }
  return launch_one(bn_usual_backward_kernel<S, W, NeuronKind, 1, kExtras, Channels>);
}

template <int W, template <int> class Channels, class S, class F>
cudaError_t with_usual_backward(const UsualCall<S>& call, F&& launch_one) {
  const bool extras = call.residual || call.grad_sam;
  if (W > kRunTimeWidth || PaperConstants::is(call.rule)) {
    return extras ? with_usual_backward<W, PaperConstants, true, Channels>(call, launch_one)
                  : with_usual_backward<W, PaperConstants, false, Channels>(call, launch_one);
  }
  if constexpr (W == kRunTimeWidth) {
    cudaError_t status = cudaSuccess;
    const auto with_one = [&](auto neuron) {
      status = with_usual_backward<W, decltype(neuron), true, Channels>(call, launch_one);
    };
    if (with_spikingjelly_neuron(call.rule, with_one)) return status;
    return with_usual_backward<W, PaperNeuron, true, Channels>(call, launch_one);
  }
  return cudaErrorInvalidValue;
}

template <class S, class F>
cudaError_t with_usual_backward(const UsualCall<S>& call, int width, F&& launch_one) {
  const bool wide = width == kWide<S>;
  if (call.extent.inner == 1) {
    return wide ? with_usual_backward<kWide<S>, RowChannels>(call, launch_one)
                : with_usual_backward<kRunTimeWidth, RowChannels>(call, launch_one);
  }
  return wide ? with_usual_backward<kWide<S>, PlanarChannels>(call, launch_one)
              : with_usual_backward<kRunTimeWidth, PlanarChannels>(call, launch_one);
}

template <class S>
cudaError_t launch_usual_sums(const LifBackward& call, int width, void* workspace, void* stream) {
  const ChannelSize size = usual_sums_size(call.shape, width);
  UsualCall<S> arguments = usual_call<S>(call, width, size, workspace);
  arguments.second = false;
  return with_usual_backward<S>(arguments, width,
                                [&](auto kernel) { return launch(kernel, size.size, stream, arguments); });
}

template <class S>
cudaError_t launch_usual_apply(const LifBackward& call, int width, void* stream) {
  ChannelSize size = channel_tiles(call.shape, width, kBackwardThreads).for_pass(8);
  UsualCall<S> arguments = usual_call<S>(call, width, size, nullptr);
  arguments.first = false;
  return with_usual_backward<S>(arguments, width,
                                [&](auto kernel) { return launch_after(kernel, size.size, stream, arguments); });
}

template <class S>
cudaError_t launch_usual_both(const BatchCoefficients& coefficients, const LifBackward& call, int width,
                              void* workspace, void* stream) {
  const ChannelSize size = usual_sums_size(call.shape, width);
  UsualCall<S> arguments = usual_call<S>(call, width, size, workspace);
  arguments.coefficients = coefficients;
  return with_usual_backward<S>(arguments, width,
                                [&](auto kernel) { return launch_at_once(kernel, size.size, stream, arguments); });
}

}  // namespace ckd::cuda
