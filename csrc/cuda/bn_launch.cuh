// Launches the kernels of batch normalisation and neuron in one, for one storage type; bn_lif_<type>.cu and
// bn_reduce_<type>.cu instantiate them, to compile in parallel.
#pragma once
#include "bn_reduce.cuh"
#include "bn_usual.cuh"
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

inline ChannelTiles channel_tiles(const Shape& shape, int width, unsigned threads) {
  return ChannelTiles(shape.outer * shape.rows, shape.channels, shape.inner, width, threads);
}

template <class S, class Call>
UsualInput<S> usual_input(const Call& call, int width, const ChannelSize& size, void* workspace) {
  const Shape& shape = call.shape;
  return {channel_cut(shape.outer * shape.rows, shape.channels, shape.inner, width, size, workspace),
          Extent(shape),
          Rule(call.neuron, call.leak),
          static_cast<float>(call.neuron.leak),
          static_cast<const S*>(call.x),
          static_cast<const float*>(call.affine.scale),
          static_cast<const float*>(call.affine.shift),
          static_cast<const S*>(call.affine.residual)};
}

template <class S, bool kResidual, template <int> class Channels>
cudaError_t launch_usual_forward(const UsualForwardCall<S>& call, const LaunchSize& size, void* stream) {
  return call.extent.steps == 1
             ? launch_after(bn_usual_forward_kernel<S, 1, kResidual, Channels>, size, stream, call)
             : launch_after(bn_usual_forward_kernel<S, kStaticSteps, kResidual, Channels>, size, stream, call);
}

template <class S, bool kResidual>
cudaError_t launch_usual_forward(const LifForward& call, void* stream) {
  const Shape& shape = call.shape;
  const ChannelSize size =
      channel_tiles(shape, kWide<S>, kUsualForwardThreads)
          .for_pass(shape.steps == 1 ? 2 * kUsualForwardBatch<1> : 2 * kUsualForwardBatch<kStaticSteps>);
  const UsualForwardCall<S> arguments{usual_input<S>(call, kWide<S>, size, nullptr), static_cast<S*>(call.spikes)};
  return shape.inner > 1 ? launch_usual_forward<S, kResidual, PlanarChannels>(arguments, size.size, stream)
                         : launch_usual_forward<S, kResidual, RowChannels>(arguments, size.size, stream);
}

// Whether the usual kernels serve a call: none of what few calls have, and whole accesses within a channel or a row.
template <class S>
bool is_usual(const LifForward& call) {
  const Shape& shape = call.shape;
  if (!has_static_steps(shape) || shape.repeated || call.leak || call.v_init || call.v_last || call.sam) return false;
  return (shape.inner > 1 ? shape.inner : shape.channels) % kWide<S> == 0 && forward_fits(call, kWide<S>) &&
         (shape.inner > 1 || aligned({call.affine.scale, call.affine.shift}));
}

template <class S>
cudaError_t launch_bn_lif(const LifForward& call, void* stream) {
  if (is_usual<S>(call)) {
    return call.affine.residual ? launch_usual_forward<S, true>(call, stream)
                                : launch_usual_forward<S, false>(call, stream);
  }
  const auto arguments = forward_call(call, normalised_current<S>(call));
  if (call.sam) return launch_forward_sam(call, arguments, stream);
  return forward_fits(call, kRunTimeWidth) ? launch_forward<kRunTimeWidth, true>(arguments, stream)
                                           : launch_forward<1, false>(arguments, stream);
}

// Width of the accesses with which the usual kernels serve a call; 0: they do not.
template <class S>
int usual_width(const LifBackward& call) {
  const Shape& shape = call.shape;
  const Rule rule(call.neuron, call.leak);
  if (!has_static_steps(shape) || shape.repeated || !is_compiled_in(rule, true)) return 0;
  if (rule.surrogate == SurrogateKind::kSigmoid && shape.steps > 1 && shape.steps < kStaticSteps) return 0;
  if (call.leak || call.v_init || call.grad_v || call.grad_v_init || !call.grad_spikes || !call.mean) return 0;
  if (!backward_aligned(call)) return 0;
  if (shape.inner == 1) {
    const bool fits = shape.channels % kRunTimeWidth == 0 &&
                      aligned({call.affine.scale, call.affine.shift, call.mean, call.offset, call.slope});
    return fits ? kRunTimeWidth : 0;
  }
  if (!aligned({call.grad_sam})) return 0;
  // With more steps, or exponentials and divisions, wide accesses take too many registers.
  if (PaperNeuron::is(rule) && shape.steps == 1 && shape.inner % kWide<S> == 0) return kWide<S>;
  return shape.inner % kRunTimeWidth == 0 ? kRunTimeWidth : 0;
}

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
          static_cast<float>(1.0 / static_cast<double>(call.shape.steps * call.shape.channels))};
}

// kFollows: whether it may begin before the kernel ahead of it has ended.
struct UsualReduce {
  template <class S, int W, class NeuronKind, int kSteps, bool kExtras, template <int> class Channels>
  static constexpr auto kernel = bn_usual_reduce_kernel<S, W, NeuronKind, kSteps, kExtras, Channels>;
  static constexpr bool kFollows = false;
};
struct UsualApply {
  template <class S, int W, class NeuronKind, int kSteps, bool kExtras, template <int> class Channels>
  static constexpr auto kernel = bn_usual_apply_kernel<S, W, NeuronKind, kSteps, kExtras, Channels>;
  static constexpr bool kFollows = true;
};

template <class Pass, int W, class NeuronKind, bool kExtras, template <int> class Channels, class S>
cudaError_t launch_usual(const UsualCall<S>& call, const LaunchSize& size, void* stream) {
  auto kernel = Pass::template kernel<S, W, NeuronKind, 1, kExtras, Channels>;
  if constexpr (W == kRunTimeWidth) {
    if (call.extent.steps > 1) kernel = Pass::template kernel<S, W, NeuronKind, kStaticSteps, kExtras, Channels>;
  }
  return Pass::kFollows ? launch_after(kernel, size, stream, call) : launch(kernel, size, stream, call);
}

template <class Pass, int W, template <int> class Channels, class S>
cudaError_t launch_usual(const UsualCall<S>& call, const LaunchSize& size, void* stream) {
  if constexpr (W == kRunTimeWidth) {
    cudaError_t status = cudaSuccess;
    const auto launch_one = [&](auto neuron) {
      status = launch_usual<Pass, W, decltype(neuron), true, Channels>(call, size, stream);
    };
    if (with_spikingjelly_neuron(call.rule, launch_one)) return status;
  }
  if (!PaperConstants::is(call.rule)) return launch_usual<Pass, W, PaperNeuron, true, Channels>(call, size, stream);
  return call.residual || call.grad_sam ? launch_usual<Pass, W, PaperConstants, true, Channels>(call, size, stream)
                                        : launch_usual<Pass, W, PaperConstants, false, Channels>(call, size, stream);
}

template <class Pass, class S>
cudaError_t launch_usual(const UsualCall<S>& call, int width, const LaunchSize& size, void* stream) {
  if (call.extent.inner == 1) return launch_usual<Pass, kRunTimeWidth, RowChannels>(call, size, stream);
  if (width == kWide<S>) return launch_usual<Pass, kWide<S>, PlanarChannels>(call, size, stream);
  return launch_usual<Pass, kRunTimeWidth, PlanarChannels>(call, size, stream);
}

template <class S>
cudaError_t launch_bn_lif(const LifBackward& call, void* workspace, void* stream) {
  if (const int width = usual_width<S>(call)) {
    const ChannelSize size = channel_tiles(call.shape, width, kBackwardThreads).for_pass(8);
    return launch_usual<UsualApply>(usual_call<S>(call, width, size, nullptr), width, size.size, stream);
  }
  const NormalisedGradient<S> gradient{static_cast<const float*>(call.mean),  static_cast<const float*>(call.offset),
                                       static_cast<const float*>(call.slope), static_cast<const S*>(call.x),
                                       static_cast<S*>(call.grad_x),          static_cast<S*>(call.grad_residual)};
  const auto with_width = [&](int width) {
    return backward_call(call, width, workspace, normalised_current<S>(call), gradient);
  };
  if (run_time_width(call) == 1) return launch_general_backward<1>(call, with_width(1), workspace, stream);
  constexpr int W = kRunTimeWidth;
  const auto arguments = with_width(W);
  if (is_general(call, arguments)) return launch_general_backward<W>(call, arguments, workspace, stream);
  return launch_backward<W, AnyNeuron, 0, true, false>(arguments, stream);
}

// Which kernel makes the first pass, one of the usual neurons', one for calls that are not general, or one for all; and
// the width of its accesses, within a channel or across channels.
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

template <class S>
ReduceChoice reduce_choice(const LifBackward& call) {
  using Kind = ReduceChoice::Kind;
  const Shape& shape = call.shape;
  if (const int width = usual_width<S>(call)) {
    return {Kind::kUsual, width, channel_tiles(shape, width, kBackwardThreads).for_sums(0)};
  }
  const auto choice = [&](Kind kind, int width) {
    const LaunchSize block = backward_size(1, width, shape.steps);
    return ReduceChoice{kind, width, channel_tiles(shape, width, block.threads).for_sums(block.shared_bytes)};
  };
  constexpr int W = kRunTimeWidth;
  if ((shape.inner > 1 ? shape.inner : shape.channels) % W != 0 || !backward_aligned(call)) {
    return choice(Kind::kGeneral, 1);
  }
  return choice(is_general(call, reduce_call<S>(call, W)) ? Kind::kGeneral : Kind::kLean, W);
}

template <class S>
int64_t bn_reduce_workspace(const LifBackward& call) {
  return partial_bytes(call.shape.channels, reduce_choice<S>(call).size);
}

template <template <int> class Channels, class S>
cudaError_t launch_bn_reduce(const ReduceCall<S>& call, const ReduceChoice& choice, void* stream) {
  const LaunchSize& size = choice.size.size;
  constexpr int W = kRunTimeWidth;
  if (choice.kind == ReduceChoice::Kind::kLean) {
    return launch(bn_reduce_kernel<S, W, false, Channels>, size, stream, call);
  }
  return choice.width == W ? launch(bn_reduce_kernel<S, W, true, Channels>, size, stream, call)
                           : launch(bn_reduce_kernel<S, 1, true, Channels>, size, stream, call);
}

template <class S>
cudaError_t launch_bn_reduce(const LifBackward& call, void* workspace, void* stream) {
  const Shape& shape = call.shape;
  const ReduceChoice choice = reduce_choice<S>(call);
  const ChannelCut cut =
      channel_cut(shape.outer * shape.rows, shape.channels, shape.inner, choice.width, choice.size, workspace);
  const auto first_pass = [&] {
    if (choice.kind == ReduceChoice::Kind::kUsual) {
      const UsualCall<S> arguments = usual_call<S>(call, choice.width, choice.size, workspace);
      return launch_usual<UsualReduce>(arguments, choice.width, choice.size.size, stream);
    }
    const ReduceCall<S> arguments{reduce_call<S>(call, choice.width), cut};
    return shape.inner > 1 ? launch_bn_reduce<PlanarChannels>(arguments, choice, stream)
                           : launch_bn_reduce<RowChannels>(arguments, choice, stream);
  };
  const cudaError_t status = first_pass();
  if (status != cudaSuccess) return status;
  return launch_add_slices(SumsCall{cut, call.sums}, stream);
}

}  // namespace ckd::cuda
