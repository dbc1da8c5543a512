// Launches the kernels of batch normalisation and neuron in one, for one storage type; bn_lif_<type>.cu and
// bn_reduce_<type>.cu instantiate them, to compile in parallel.
#pragma once
#include "bn_reduce.cuh"
#include "bn_usual_calls.cuh"
#include "bn_usual_forward.cuh"
#include "lif_launch.cuh"
#include "normalise.cuh"

namespace ckd::cuda {

template <class S>
cudaError_t launch_bn_lif(const LifForward& call, void* stream);
template <class S>
cudaError_t launch_bn_lif(const LifBackward& call, void* workspace, void* stream);
template <class S>
cudaError_t launch_bn_reduce(const LifBackward& call, void* workspace, void* stream);
// All at once; whether that was done.
template <class S>
bool launch_bn_lif(const BatchStatistics& statistics, const BatchFold& fold, const LifForward& call, void* workspace,
                   void* stream, cudaError_t& status);
template <class S>
bool launch_bn_lif(const BatchCoefficients& coefficients, const LifBackward& call, void* workspace, void* stream,
                   cudaError_t& status);

template <class S, class Call>
NormalisedCurrent<S> normalised_current(const Call& call) {
  return {static_cast<const S*>(call.x), static_cast<const float*>(call.affine.scale),
          static_cast<const float*>(call.affine.shift), static_cast<const S*>(call.affine.residual)};
}

// Calls launch_one(kernel) with the one that serves a call.
template <class S, bool kResidual, template <int> class Channels, class F>
cudaError_t with_usual_forward(const LifForward& call, F&& launch_one) {
  return call.shape.steps == 1 ? launch_one(bn_usual_forward_kernel<S, 1, kResidual, Channels>)
                               : launch_one(bn_usual_forward_kernel<S, 4, kResidual, Channels>);
}

template <class S, class F>
cudaError_t with_usual_forward(const LifForward& call, F&& launch_one) {
  if (call.shape.inner > 1) {
    return call.affine.residual ? with_usual_forward<S, true, PlanarChannels>(call, launch_one)
                                : with_usual_forward<S, false, PlanarChannels>(call, launch_one);
  }
  return call.affine.residual ? with_usual_forward<S, true, RowChannels>(call, launch_one)
                              : with_usual_forward<S, false, RowChannels>(call, launch_one);
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
    const Shape& shape = call.shape;
    const ChannelSize size = channel_tiles(shape, kWide<S>, kUsualForwardThreads)
                                 .for_pass(shape.steps == 1 ? 2 * kUsualForwardBatch<1> : 2 * kUsualForwardBatch<4>);
    const UsualForwardCall<S> arguments{
        usual_input<S>(call, kWide<S>, size, nullptr), static_cast<S*>(call.spikes), {}, {}};
    return with_usual_forward<S>(call, [&](auto kernel) { return launch_after(kernel, size.size, stream, arguments); });
  }
  const auto arguments = forward_call(call, normalised_current<S>(call));
  if (call.sam) return launch_forward_sam(call, arguments, stream);
  return forward_fits(call, kRunTimeWidth) ? launch_forward<kRunTimeWidth, true>(arguments, stream)
                                           : launch_forward<1, false>(arguments, stream);
}

// Statistics, what follows from them, and the neurons; false where the call has no kernel for that, or is too large.
template <class S>
bool launch_bn_lif(const BatchStatistics& statistics, const BatchFold& fold, const LifForward& call, void* workspace,
                   void* stream, cudaError_t& status) {
  const StatisticsPlan plan(statistics, S());
  if (!is_usual<S>(call) || plan.width != kWide<S> || !is_best_at_once(call.shape, sizeof(S), 1)) return false;
  // A block has the same neurons in both passes.
  ChannelSize pass = plan.size;
  pass.per_slice /= plan.steps;
  const UsualForwardCall<S> arguments{usual_input<S>(call, plan.width, pass, nullptr), static_cast<S*>(call.spikes),
                                      statistics_call<S>(statistics, plan, workspace), fold};
  status = with_usual_forward<S>(
      call, [&](auto kernel) { return launch_at_once(kernel, plan.size.size, stream, arguments); });
  return true;
}

// Both passes; false where the call has no kernel for that, or is too large.
template <class S>
bool launch_bn_lif(const BatchCoefficients& coefficients, const LifBackward& call, void* workspace, void* stream,
                   cudaError_t& status) {
  const int width = usual_width<S>(call);
  if (width == 0 || !is_best_at_once(call.shape, sizeof(S), call.affine.residual ? 3 : 2)) return false;
  status = launch_usual_both<S>(coefficients, call, width, workspace, stream);
  return true;
}

template <class S>
cudaError_t launch_bn_lif(const LifBackward& call, void* workspace, void* stream) {
  if (const int width = usual_width<S>(call)) {
    return launch_usual_apply<S>(call, width, stream);
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
    return {Kind::kUsual, width, usual_sums_size(call.shape, width)};
  }
  const auto choice = [&](Kind kind, int width) {
    const LaunchSize block = backward_size(1, width, shape.steps);
    return ReduceChoice{kind, width, channel_tiles(shape, width, block.threads).for_sums(512, block.shared_bytes)};
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
      return launch_usual_sums<S>(call, choice.width, workspace, stream);
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
