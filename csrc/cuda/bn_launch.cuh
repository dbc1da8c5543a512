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
  if (call.sam) return launch_forward_sam(call, arguments, stream);
  if (has_static_steps(call.shape) && forward_fits(call, W)) {
    return call.shape.inner % W == 0 ? launch_static_forward<W, false>(arguments, stream)
                                     : launch_static_forward<W, true>(arguments, stream);
  }
  return forward_fits(call, kRunTimeWidth) ? launch_forward<kRunTimeWidth, true>(arguments, stream)
                                           : launch_forward<1, false>(arguments, stream);
}

// Whether the way back has kernels compiled for the number of steps of a call: one, or the four of the usual neuron.
template <class Call>
bool is_usual(const LifBackward& call, const Call& arguments) {
  return call.grad_spikes && !is_general(call, arguments) &&
         (call.shape.steps == 1 || (call.shape.steps == 4 && PaperNeuron::is(arguments.rule)));
}

template <class S>
cudaError_t launch_bn_lif(const LifBackward& call, void* workspace, void* stream) {
  const NormalisedGradient<S> gradient{static_cast<const float*>(call.mean),  static_cast<const float*>(call.offset),
                                       static_cast<const float*>(call.slope), static_cast<const S*>(call.x),
                                       static_cast<S*>(call.grad_x),          static_cast<S*>(call.grad_residual)};
  const auto with_width = [&](int width) {
    return backward_call(call, width, workspace, normalised_current<S>(call), gradient);
  };
  if (run_time_width(call) == 1) return launch_general_backward<1>(call, with_width(1), workspace, stream);
  // What a thread holds grows with the steps and, where its neighbours are not of one channel, with their constants.
  constexpr int kWidest = kWide<S>, W = kRunTimeWidth;
  if (call.shape.steps == 1 && call.shape.inner % kWidest == 0) {
    const auto wide = with_width(kWidest);
    if (is_usual(call, wide) && PaperNeuron::is(wide.rule)) {
      return launch_backward<kWidest, PaperNeuron, 1, false, false>(wide, stream);
    }
  }
  const auto arguments = with_width(W);
  if (is_usual(call, arguments)) {
    if (call.shape.steps == 1) {
      return PaperNeuron::is(arguments.rule) ? launch_backward<W, PaperNeuron, 1, true, false>(arguments, stream)
                                             : launch_backward<W, AnyNeuron, 1, true, false>(arguments, stream);
    }
    return call.shape.inner % W == 0 ? launch_backward<W, PaperNeuron, 4, false, false>(arguments, stream)
                                     : launch_backward<W, PaperNeuron, 4, true, false>(arguments, stream);
  }
  if (is_general(call, arguments)) return launch_general_backward<W>(call, arguments, workspace, stream);
  return launch_backward<W, AnyNeuron, 0, true, false>(arguments, stream);
}

// Which kernel makes the first pass: one compiled for the number of steps, one for calls that are not general, or one
// for all; and the width of its accesses, within a channel or across channels.
struct ReduceChoice {
  enum class Kind { kUsual, kLean, kGeneral } kind;
  int width;
  ChannelSize size;
};

template <class S>
BackwardCall<NormalisedCurrent<S>, NormalisedGradientSums<S>> reduce_call(const LifBackward& call, int width) {
  const NormalisedGradientSums<S> sums{static_cast<const float*>(call.mean), static_cast<const S*>(call.x)};
  return backward_call(call, width, nullptr, normalised_current<S>(call), sums);
}

// Of the usual neuron's kernel for one step: as wide as an access, where neighbours are of one channel.
template <class S>
int one_step_width(const Shape& shape) {
  return shape.inner > 1 ? kWide<S> : kRunTimeWidth;
}

template <class S>
ReduceChoice reduce_choice(const LifBackward& call) {
  using Kind = ReduceChoice::Kind;
  const Shape& shape = call.shape;
  const auto fits = [&](int width) {
    return (shape.inner > 1 ? shape.inner : shape.channels) % width == 0 && backward_aligned(call);
  };
  const auto choice = [&](Kind kind, int width) {
    const LaunchSize block = backward_size(1, width, kind == Kind::kUsual ? 0 : shape.steps);
    return ReduceChoice{
        kind, width,
        channel_size(shape.outer * shape.rows, shape.channels, shape.inner, width, block.threads, block.shared_bytes)};
  };
  if (const int widest = one_step_width<S>(shape); shape.steps == 1 && fits(widest)) {
    const auto arguments = reduce_call<S>(call, widest);
    if (is_usual(call, arguments) && PaperNeuron::is(arguments.rule)) return choice(Kind::kUsual, widest);
  }
  if (!fits(kRunTimeWidth)) return choice(Kind::kGeneral, 1);
  const auto arguments = reduce_call<S>(call, kRunTimeWidth);
  if (is_usual(call, arguments)) return choice(Kind::kUsual, kRunTimeWidth);
  return choice(is_general(call, arguments) ? Kind::kGeneral : Kind::kLean, kRunTimeWidth);
}

template <class S>
int64_t bn_reduce_workspace(const LifBackward& call) {
  return partial_bytes(call.shape.channels, reduce_choice<S>(call).size);
}

template <int kOneStepWidth, template <int> class Channels, class S>
cudaError_t launch_bn_reduce(const ReduceCall<S>& call, const ReduceChoice& choice, void* stream) {
  const LaunchSize& size = choice.size.size;
  constexpr int W = kRunTimeWidth;
  switch (choice.kind) {
    case ReduceChoice::Kind::kUsual:
      if (call.backward.extent.steps == 4) {
        return launch(bn_reduce_kernel<S, W, PaperNeuron, 4, false, Channels>, size, stream, call);
      }
      return choice.width == kOneStepWidth && PaperNeuron::is(call.backward.rule)
                 ? launch(bn_reduce_kernel<S, kOneStepWidth, PaperNeuron, 1, false, Channels>, size, stream, call)
                 : launch(bn_reduce_kernel<S, W, AnyNeuron, 1, false, Channels>, size, stream, call);
    case ReduceChoice::Kind::kLean:
      return launch(bn_reduce_kernel<S, W, AnyNeuron, 0, false, Channels>, size, stream, call);
    default:
      return choice.width == W ? launch(bn_reduce_kernel<S, W, AnyNeuron, 0, true, Channels>, size, stream, call)
                               : launch(bn_reduce_kernel<S, 1, AnyNeuron, 0, true, Channels>, size, stream, call);
  }
}

template <class S>
cudaError_t launch_bn_reduce(const LifBackward& call, void* workspace, void* stream) {
  const Shape& shape = call.shape;
  const ReduceChoice choice = reduce_choice<S>(call);
  const ChannelCut cut = channel_cut(shape.outer * shape.rows, shape.channels, shape.inner, choice.size, workspace);
  const ReduceCall<S> arguments{reduce_call<S>(call, choice.width), cut};
  const cudaError_t status = shape.inner > 1 ? launch_bn_reduce<kWide<S>, PlanarChannels>(arguments, choice, stream)
                                             : launch_bn_reduce<kRunTimeWidth, RowChannels>(arguments, choice, stream);
  if (status != cudaSuccess) return status;
  return launch_add_slices(SumsCall{cut, call.sums}, stream);
}

}  // namespace ckd::cuda
