// Launches the kernels of batch normalisation and neuron in one, for one storage type; bn_lif_<type>.cu and
// bn_reduce_<type>.cu instantiate them, to compile in parallel.
#pragma once
#include "bn_reduce.cuh"
#include "lif_launch.cuh"
#include "normalise.cuh"

namespace ckd::cuda {

template <class S>
cudaError_t launch_bn_lif(const LifForward& call, void* stream);
template <class S>
cudaError_t launch_bn_lif(const LifBackward& call, void* workspace, void* stream);
template <class S>
cudaError_t launch_bn_reduce(const LifBackward& call, void* workspace, void* stream);

template <class S, class Call>
NormalisedCurrent<S> normalised_current(const Call& call) {
  return {static_cast<const S*>(call.x), static_cast<const float*>(call.affine.scale),
          static_cast<const float*>(call.affine.shift), static_cast<const S*>(call.affine.residual)};
}

template <class S>
cudaError_t launch_bn_lif(const LifForward& call, void* stream) {
  constexpr int W = kWide<S>;
  const auto arguments = forward_call(call, normalised_current<S>(call));
  const bool wide = forward_fits(call, W);
  if (call.sam) return wide ? launch_forward_sam<W>(arguments, stream) : launch_forward_sam<1>(arguments, stream);
  if (!wide) return launch_forward<1, false, false>(arguments, stream);
  return call.shape.inner % W == 0 ? launch_forward<W, false, true>(arguments, stream)
                                   : launch_forward<W, true, true>(arguments, stream);
}

template <class S>
cudaError_t launch_bn_lif(const LifBackward& call, void* workspace, void* stream) {
  constexpr int kOneChannel = kWide<S>;
  const NormalisedGradient<S> gradient{static_cast<const float*>(call.mean),  static_cast<const float*>(call.offset),
                                       static_cast<const float*>(call.slope), static_cast<const S*>(call.x),
                                       static_cast<S*>(call.grad_x),          static_cast<S*>(call.grad_residual)};
  const auto with_width = [&](int width) {
    return backward_call(call, width, workspace, normalised_current<S>(call), gradient);
  };
  if (run_time_width(call) == 1) return launch_general_backward<1>(call, with_width(1), workspace, stream);
  constexpr int W = kRunTimeWidth;
  const auto arguments = with_width(W);
  if (has_static_steps(call) && PaperNeuron::is(arguments.rule)) {
    const auto wide = with_width(kOneChannel);
    if (call.shape.inner % kOneChannel == 0 && !is_general(call, wide)) {
      return launch_static_backward<kOneChannel, PaperNeuron, false>(wide, stream);
    }
    // Five constants for each neighbour: few neighbours.
    if (!is_general(call, arguments)) return launch_static_backward<W, PaperNeuron, true>(arguments, stream);
  }
  return launch_general_backward<W>(call, arguments, workspace, stream);
}

// Which kernel makes the first pass: the width of its accesses, within a channel or across channels, and whether it was
// compiled for the call's neuron and number of steps.
struct ReduceChoice {
  int width;
  bool usual;
  ChannelSize size;
};

template <class S>
auto reduce_call(const LifBackward& call, int width) {
  const NormalisedGradientSums<S> sums{static_cast<const float*>(call.mean), static_cast<const S*>(call.x)};
  return backward_call(call, width, nullptr, normalised_current<S>(call), sums);
}

template <class S>
ReduceChoice reduce_choice(const LifBackward& call) {
  const Shape& shape = call.shape;
  const bool planar = shape.inner > 1;
  const auto fits = [&](int width) {
    return (planar ? shape.inner : shape.channels) % width == 0 && backward_aligned(call);
  };
  int width = planar ? kWide<S> : kRunTimeWidth;
  bool usual = has_static_steps(call) && fits(width);
  if (usual) {
    const auto arguments = reduce_call<S>(call, width);
    usual = PaperNeuron::is(arguments.rule) && !is_general(call, arguments);
  }
  if (!usual) width = fits(kRunTimeWidth) ? kRunTimeWidth : 1;
  const LaunchSize block = backward_size(1, width, usual ? 0 : shape.steps);
  return {
      width, usual,
      channel_size(shape.outer * shape.rows, shape.channels, shape.inner, width, block.threads, block.shared_bytes)};
}

template <class S>
int64_t bn_reduce_workspace(const LifBackward& call) {
  return partial_bytes(call.shape.channels, reduce_choice<S>(call).size);
}

template <class S, int kUsualWidth, template <int> class Channels>
cudaError_t launch_bn_reduce(const ReduceCall<S>& call, const ReduceChoice& choice, void* stream) {
  const LaunchSize& size = choice.size.size;
  constexpr int W = kRunTimeWidth;
  if (choice.usual) {
    return call.backward.extent.steps == 1
               ? launch(bn_reduce_kernel<S, kUsualWidth, PaperNeuron, 1, false, Channels>, size, stream, call)
               : launch(bn_reduce_kernel<S, kUsualWidth, PaperNeuron, 4, false, Channels>, size, stream, call);
  }
  return choice.width == W ? launch(bn_reduce_kernel<S, W, AnyNeuron, 0, true, Channels>, size, stream, call)
                           : launch(bn_reduce_kernel<S, 1, AnyNeuron, 0, true, Channels>, size, stream, call);
}

template <class S>
cudaError_t launch_bn_reduce(const LifBackward& call, void* workspace, void* stream) {
  const Shape& shape = call.shape;
  const ReduceChoice choice = reduce_choice<S>(call);
  const ChannelCut cut = channel_cut(shape.outer * shape.rows, shape.channels, shape.inner, choice.size, workspace);
  const ReduceCall<S> arguments{reduce_call<S>(call, choice.width), cut};
  const cudaError_t status = shape.inner > 1
                                 ? launch_bn_reduce<S, kWide<S>, PlanarChannels>(arguments, choice, stream)
                                 : launch_bn_reduce<S, kRunTimeWidth, RowChannels>(arguments, choice, stream);
  if (status != cudaSuccess) return status;
  return launch_add_slices(SumsCall{cut, call.sums}, stream);
}

}  // namespace ckd::cuda
