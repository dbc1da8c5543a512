// Which calls the usual neurons' kernels serve, and how; the backward ones are instantiated by bn_usual_<type>.cu.
#pragma once
#include "bn_usual.cuh"
#include "lif_launch.cuh"

namespace ckd::cuda {

// Of the width that usual_width() gives: the first pass, the second one, or both all at once.
template <class S>
cudaError_t launch_usual_sums(const LifBackward& call, int width, void* workspace, void* stream);
template <class S>
cudaError_t launch_usual_apply(const LifBackward& call, int width, void* stream);
template <class S>
cudaError_t launch_usual_both(const BatchCoefficients& coefficients, const LifBackward& call, int width,
                              void* workspace, void* stream);

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

// Width of the accesses with which the usual kernels serve a call; 0: they do not.
template <class S>
int usual_width(const LifBackward& call) {
  const Shape& shape = call.shape;
  const Rule rule(call.neuron, call.leak);
  if (!has_static_steps(shape) || shape.repeated || !is_compiled_in(rule) || rule.delayed) return 0;
  if (call.leak || call.v_init || call.grad_v || call.grad_v_init || !call.grad_spikes || !call.mean) return 0;
  if (!backward_aligned(call)) return 0;
  if (shape.inner == 1) {
    if (!aligned({call.affine.scale, call.affine.shift, call.mean, call.offset, call.slope})) return 0;
    // With a residual of all steps at hand, wide accesses take too many registers.
    const bool much = shape.steps > 1 && (call.affine.residual || call.grad_sam);
    if (PaperConstants::is(rule) && !much && shape.channels % kWide<S> == 0) return kWide<S>;
    return shape.channels % kRunTimeWidth == 0 ? kRunTimeWidth : 0;
  }
  if (!aligned({call.grad_sam})) return 0;
  // With more steps, or exponentials and divisions, wide accesses take too many registers.
  if (PaperConstants::is(rule) && shape.steps == 1 && shape.inner % kWide<S> == 0) return kWide<S>;
  return shape.inner % kRunTimeWidth == 0 ? kRunTimeWidth : 0;
}

// For sums, as many blocks as a large processor has room for.
inline ChannelSize usual_sums_size(const Shape& shape, int width) {
  return channel_tiles(shape, width, kBackwardThreads).for_sums(width > kRunTimeWidth ? 384 : 512, 0);
}

}  // namespace ckd::cuda
