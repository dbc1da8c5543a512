// Launches the kernels of multi-step neurons for one storage type; lif_<type>.cu instantiates them, to compile in
// parallel.
#pragma once
#include "launch.h"
#include "lif_backward.cuh"
#include "lif_forward.cuh"

namespace ckd::cuda {

template <class S>
cudaError_t launch_lif(const LifForward& call, void* stream);
template <class S>
cudaError_t launch_lif(const LifBackward& call, void* workspace, void* stream);

// Neighbours of a thread where the number of steps is known at run time only and a thread holds much else. With 2-byte
// types that is half of what one access holds: the number of threads counts for more than the width.
inline constexpr int kRunTimeWidth = 4;

inline bool has_static_steps(const Shape& shape) { return shape.steps <= kStaticSteps; }

// A leak per channel is one value for W neighbours where a channel's innermost run is a multiple of W.
inline bool leak_for_each(const Shape& shape, bool per_channel, int width) {
  return per_channel && shape.inner % width != 0;
}

template <class Call>
LeakSource leak_source(const Call& call) {
  return {static_cast<const float*>(call.leak), call.leak_per_channel, static_cast<float>(call.neuron.leak)};
}

template <class Current>
ForwardCall<Current> forward_call(const LifForward& call, const Current& current) {
  using S = typename Current::Storage;
  return {Extent(call.shape),
          Rule(call.neuron, call.leak),
          leak_source(call),
          current,
          static_cast<const float*>(call.v_init),
          static_cast<S*>(call.spikes),
          static_cast<float*>(call.v_last),
          static_cast<float*>(call.checkpoints),
          call.sam,
          {}};
}

template <int W, bool kEach, class Current>
cudaError_t launch_forward(const ForwardCall<Current>& call, void* stream) {
  const LaunchSize size = forward_size(call.extent.neurons, W);
  return launch(lif_forward_kernel<Current, W, 0, kEach>, size, stream, call);
}

template <int W, bool kEach, class Current>
cudaError_t launch_static_forward(const ForwardCall<Current>& call, void* stream) {
  const LaunchSize size = forward_size(call.extent.neurons, W);
  return call.extent.steps == 1 ? launch(lif_forward_kernel<Current, W, 1, kEach>, size, stream, call)
                                : launch(lif_forward_kernel<Current, W, kStaticSteps, kEach>, size, stream, call);
}

template <int W, int kSteps, class Current>
cudaError_t launch_forward_sam(ForwardCall<Current> call, void* stream) {
  int processors = 1;
  const cudaError_t status = processor_count(processors);
  if (status != cudaSuccess) return status;
  const Extent& e = call.extent;
  const LocationSize size =
      e.inner == 1 ? row_size(e.locations(), e.channels, W) : planar_size(e.rows(), e.channels, e.inner, W, processors);
  call.tile = {size.across, size.deep, Divider(size.tiles)};
  return e.inner == 1 ? launch(lif_forward_sam_kernel<Current, W, kSteps, RowLocations>, size.size, stream, call)
                      : launch(lif_forward_sam_kernel<Current, W, kSteps, PlanarLocations>, size.size, stream, call);
}

// Whether accesses of `width` neighbours are possible. Beside SAM these must share their row or their channel.
inline bool forward_fits(const LifForward& call, int width) {
  const Shape& shape = call.shape;
  const int64_t run = !call.sam ? shape.frame() : shape.inner == 1 ? shape.channels : shape.inner;
  return run % width == 0 &&
         aligned({call.x, call.v_init, call.spikes, call.v_last, call.checkpoints, call.affine.residual});
}

template <class Current>
cudaError_t launch_forward_sam(const LifForward& call, const ForwardCall<Current>& arguments, void* stream) {
  constexpr int W = kWide<typename Current::Storage>;
  const int64_t steps = call.shape.steps;
  if ((steps == 1 || steps == kStaticSteps) && forward_fits(call, W)) {
    return steps == 1 ? launch_forward_sam<W, 1>(arguments, stream)
                      : launch_forward_sam<W, kStaticSteps>(arguments, stream);
  }
  return forward_fits(call, kRunTimeWidth) ? launch_forward_sam<kRunTimeWidth, 0>(arguments, stream)
                                           : launch_forward_sam<1, 0>(arguments, stream);
}

template <class S>
cudaError_t launch_lif(const LifForward& call, void* stream) {
  constexpr int W = kWide<S>;
  const auto arguments = forward_call(call, StoredCurrent<S>{static_cast<const S*>(call.x)});
  if (call.sam) return launch_forward_sam(call, arguments, stream);
  if (!forward_fits(call, W)) return launch_forward<1, false>(arguments, stream);
  if (leak_for_each(call.shape, call.leak_per_channel, W)) return launch_forward<W, true>(arguments, stream);
  return has_static_steps(call.shape) ? launch_static_forward<W, false>(arguments, stream)
                                      : launch_forward<W, false>(arguments, stream);
}

inline MapAccess map_access(const LifBackward& call, int width) {
  const Shape& shape = call.shape;
  if (!call.grad_sam) return MapAccess::kNone;
  if (shape.inner == 1 && shape.channels % width == 0) return MapAccess::kOneValue;
  if (shape.inner % width == 0 && aligned({call.grad_sam})) return MapAccess::kContiguous;
  return width == 1 ? MapAccess::kOneValue : MapAccess::kScattered;
}

// The leak gradient before the last additions: terms in the layout [rows, channels, inner].
struct LeakTerms {
  int64_t rows, channels, inner;
  int slices;
  bool each;
  LeakTerms(const LifBackward& call, int width) : each(leak_for_each(call.shape, call.leak_per_channel, width)) {
    const Shape& shape = call.shape;
    rows = call.leak_per_channel ? shape.outer * shape.rows : 1;
    channels = call.leak_per_channel ? shape.channels : 1;
    inner = call.leak_per_channel ? shape.inner : shape.outer * shape.frame();
    if (!each) inner /= width;
    slices = sum_slices(rows * inner, channels);
  }
  int64_t count() const { return rows * channels * inner; }
  int64_t bytes() const { return (count() + channels * slices) * int64_t{sizeof(double)}; }
};

inline bool backward_aligned(const LifBackward& call) {
  return aligned({call.x, call.v_init, call.checkpoints, call.grad_spikes, call.grad_v, call.grad_x, call.grad_v_init,
                  call.affine.residual, call.grad_residual});
}

inline int run_time_width(const LifBackward& call) {
  return call.shape.frame() % kRunTimeWidth == 0 && backward_aligned(call) ? kRunTimeWidth : 1;
}

// leak_gradient.cu: adds the terms up.
cudaError_t add_up(const LeakTerms& terms, double* workspace, float* out, void* stream);

template <class Current, class Gradient>
BackwardCall<Current, Gradient> backward_call(const LifBackward& call, int width, void* workspace,
                                              const Current& current, const Gradient& gradient) {
  using S = typename Current::Storage;
  const Shape& shape = call.shape;
  return {Extent(shape),
          Rule(call.neuron, call.leak),
          leak_source(call),
          current,
          static_cast<const float*>(call.v_init),
          static_cast<const float*>(call.checkpoints),
          static_cast<const S*>(call.grad_spikes),
          static_cast<const float*>(call.grad_v),
          call.grad_sam,
          static_cast<float>(1.0 / static_cast<double>(shape.steps * shape.channels)),
          map_access(call, width),
          gradient,
          static_cast<float*>(call.grad_v_init),
          call.grad_leak ? static_cast<double*>(workspace) : nullptr,
          leak_for_each(shape, call.leak_per_channel, width)};
}

// Whether a call needs the general path (kGeneral).
template <class Call>
bool is_general(const LifBackward& call, const Call& arguments) {
  return arguments.leak_sum_each || call.shape.repeated || call.grad_leak || arguments.rule.delayed ||
         arguments.map_access == MapAccess::kScattered;
}

template <int W, class NeuronKind, int kSteps, bool kEach, bool kGeneral, class Call>
cudaError_t launch_backward(const Call& call, void* stream) {
  return launch(lif_backward_kernel<Call, W, NeuronKind, kSteps, kEach, kGeneral>,
                backward_size(call.extent.neurons, W, kSteps > 0 ? 0 : call.extent.steps), stream, call);
}

// The general path, for any call of any neuron.
template <int W, class Call>
cudaError_t launch_general_backward(const LifBackward& call, const Call& arguments, void* workspace, void* stream) {
  const cudaError_t status = launch_backward<W, AnyNeuron, 0, true, true>(arguments, stream);
  if (status != cudaSuccess || !call.grad_leak) return status;
  return add_up(LeakTerms(call, W), static_cast<double*>(workspace), static_cast<float*>(call.grad_leak), stream);
}

template <class S>
cudaError_t launch_lif(const LifBackward& call, void* workspace, void* stream) {
  constexpr int kStaticWidth = kWide<S>;
  const StoredCurrent<S> current{static_cast<const S*>(call.x)};
  const StoredGradient<S> gradient{static_cast<S*>(call.grad_x)};
  const auto with_width = [&](int width) { return backward_call(call, width, workspace, current, gradient); };
  if (run_time_width(call) == 1) return launch_general_backward<1>(call, with_width(1), workspace, stream);
  if (call.grad_spikes && has_static_steps(call.shape) && call.shape.frame() % kStaticWidth == 0) {
    const auto wide = with_width(kStaticWidth);
    const bool one = call.shape.steps == 1;
    cudaError_t status = cudaSuccess;
    const auto launch_one = [&](auto neuron) {
      using N = decltype(neuron);
      // Exponentials of many neighbours at all of four steps take too many registers.
      constexpr int kWidth = kHasExponential<N> ? kRunTimeWidth : kStaticWidth;
      if (one) {
        status = launch_backward<kStaticWidth, N, 1, false, false>(wide, stream);
      } else if (kHasExponential<N> && call.shape.steps < kStaticSteps) {
        status = launch_backward<kRunTimeWidth, N, 0, false, false>(with_width(kRunTimeWidth), stream);
      } else {
        status = launch_backward<kWidth, N, kStaticSteps, false, false>(with_width(kWidth), stream);
      }
    };
    if (!is_general(call, wide)) {
      if (PaperNeuron::is(wide.rule)) return launch_one(PaperNeuron()), status;
      if (with_usual_neuron(wide.rule, launch_one)) return status;
      if (one) return launch_backward<kStaticWidth, AnyNeuron, 1, false, false>(wide, stream);
    }
  }
  constexpr int W = kRunTimeWidth;
  const auto arguments = with_width(W);
  if (is_general(call, arguments)) return launch_general_backward<W>(call, arguments, workspace, stream);
  if (PaperNeuron::is(arguments.rule)) return launch_backward<W, PaperNeuron, 0, false, false>(arguments, stream);
  cudaError_t status = cudaSuccess;
  const auto launch_one = [&](auto neuron) {
    status = launch_backward<W, decltype(neuron), 0, false, false>(arguments, stream);
  };
  if (with_usual_neuron(arguments.rule, launch_one)) return status;
  return launch_backward<W, AnyNeuron, 0, false, false>(arguments, stream);
}

}  // namespace ckd::cuda
