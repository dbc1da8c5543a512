// Launches the kernels of multi-step neurons for one storage type; lif_<type>.cu instantiates them, to compile in
// parallel.
#pragma once
#include "launch.h"
#include "leak_gradient.cuh"
#include "lif_backward.cuh"
#include "lif_forward.cuh"

namespace ckd::cuda {

template <class S>
cudaError_t launch_lif(const LifForward& call, void* stream);
template <class S>
cudaError_t launch_lif(const LifBackward& call, void* workspace, void* stream);

// A leak per channel is one value for W neighbours where a channel's innermost run is a multiple of W.
inline bool leak_for_each(const Shape& shape, bool per_channel, int width) {
  return per_channel && shape.inner % width != 0;
}

template <class Call>
LeakSource leak_source(const Call& call) {
  return {static_cast<const float*>(call.leak), call.leak_per_channel, static_cast<float>(call.neuron.leak)};
}

template <class S, int W, template <class, int> class Locations>
cudaError_t launch_forward_sam(const ForwardCall<S>& call, const LaunchSize& size, void* stream) {
  if constexpr (W > 1) {
    const Extent& e = call.extent;
    if (!e.repeated && e.steps == 1) return launch(lif_forward_sam_kernel<S, W, 1, Locations>, size, stream, call);
    if (!e.repeated && e.steps == 4) return launch(lif_forward_sam_kernel<S, W, 4, Locations>, size, stream, call);
  }
  return launch(lif_forward_sam_kernel<S, W, 0, Locations>, size, stream, call);
}

template <class S, int W>
cudaError_t launch_forward(const LifForward& call, void* stream, int processors) {
  ForwardCall<S> arguments{Extent(call.shape),
                           Rule(call.neuron, call.leak),
                           leak_source(call),
                           {static_cast<const S*>(call.x)},
                           static_cast<const float*>(call.v_init),
                           static_cast<S*>(call.spikes),
                           static_cast<float*>(call.v_last),
                           static_cast<float*>(call.checkpoints),
                           call.sam,
                           {}};
  const Extent& e = arguments.extent;
  if (!call.sam) {
    const LaunchSize size = forward_size(e.neurons, W);
    if (leak_for_each(call.shape, call.leak_per_channel, W)) {
      return launch(lif_forward_kernel<S, W, 0, true>, size, stream, arguments);
    }
    if constexpr (W > 1) {
      if (!e.repeated && e.steps == 1) return launch(lif_forward_kernel<S, W, 1, false>, size, stream, arguments);
      if (!e.repeated && e.steps == 4) return launch(lif_forward_kernel<S, W, 4, false>, size, stream, arguments);
    }
    return launch(lif_forward_kernel<S, W, 0, false>, size, stream, arguments);
  }
  const bool channels_last = e.inner == 1;
  const LocationSize size = channels_last ? row_size(e.locations(), e.channels, W)
                                          : planar_size(e.outer * e.rows, e.channels, e.inner, W, processors);
  arguments.tile = {size.across, size.deep};
  return channels_last ? launch_forward_sam<S, W, RowLocations>(arguments, size.size, stream)
                       : launch_forward_sam<S, W, PlanarLocations>(arguments, size.size, stream);
}

template <class S>
cudaError_t launch_lif(const LifForward& call, void* stream) {
  int processors = 1;
  if (call.sam) {
    const cudaError_t status = processor_count(processors);
    if (status != cudaSuccess) return status;
  }
  constexpr int W = kWide<S>;
  const Shape& shape = call.shape;
  // Beside SAM the neighbours of an access must share their row or their channel.
  const int64_t run = !call.sam ? shape.frame() : shape.inner == 1 ? shape.channels : shape.inner;
  if (run % W == 0 && aligned({call.x, call.v_init, call.spikes, call.v_last, call.checkpoints})) {
    return launch_forward<S, W>(call, stream, processors);
  }
  return launch_forward<S, 1>(call, stream, processors);
}

template <int W>
MapAccess map_access(const LifBackward& call) {
  const Shape& shape = call.shape;
  if (!call.grad_sam) return MapAccess::kNone;
  if (shape.inner == 1 && shape.channels % W == 0) return MapAccess::kOneValue;
  if (shape.inner % W == 0 && aligned({call.grad_sam})) return MapAccess::kContiguous;
  return W == 1 ? MapAccess::kOneValue : MapAccess::kScattered;
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

template <class S>
int backward_width(const LifBackward& call) {
  const bool wide =
      call.shape.frame() % kWide<S> == 0 &&
      aligned({call.x, call.v_init, call.checkpoints, call.grad_spikes, call.grad_v, call.grad_x, call.grad_v_init});
  return wide ? kWide<S> : 1;
}

inline cudaError_t add_up(const LeakTerms& terms, double* workspace, float* out, void* stream) {
  constexpr size_t kShared = kSumThreads * sizeof(double);
  double* slices = workspace + terms.count();
  const LeakSumCall<double> first{workspace, terms.rows, terms.channels, terms.inner, terms.slices, slices};
  const LeakSumCall<float> second{slices, 1, terms.channels, terms.slices, 1, out};
  const auto size = [](int64_t blocks) { return LaunchSize{block_count(blocks, 1), kSumThreads, kShared}; };
  const cudaError_t status = launch(leak_sum_kernel<double>, size(terms.channels * terms.slices), stream, first);
  if (status != cudaSuccess) return status;
  return launch(leak_sum_kernel<float>, size(terms.channels), stream, second);
}

template <class S, int W, class NeuronKind, int kSteps, bool kGeneral>
cudaError_t launch_backward(const BackwardCall<S>& call, void* stream) {
  return launch(lif_backward_kernel<S, W, NeuronKind, kSteps, kGeneral>,
                backward_size(call.extent.neurons, W, kSteps > 0 ? 0 : call.extent.steps), stream, call);
}

template <class S, int W, class NeuronKind>
cudaError_t launch_usual_backward(const BackwardCall<S>& call, void* stream) {
  if (call.grad_spikes && call.extent.steps == 1) return launch_backward<S, W, NeuronKind, 1, false>(call, stream);
  if (call.grad_spikes && call.extent.steps == 4) return launch_backward<S, W, NeuronKind, 4, false>(call, stream);
  return launch_backward<S, W, NeuronKind, 0, false>(call, stream);
}

template <class S, int W>
cudaError_t launch_lean_backward(const BackwardCall<S>& call, void* stream) {
  if constexpr (W > 1) {
    if (PaperNeuron::is(call.rule)) return launch_usual_backward<S, W, PaperNeuron>(call, stream);
    if (SpikingJellyNeuron::is(call.rule)) return launch_usual_backward<S, W, SpikingJellyNeuron>(call, stream);
    return launch_backward<S, W, AnyNeuron, 0, false>(call, stream);
  } else {
    return cudaErrorInvalidValue;  // narrow accesses are general
  }
}

template <class S, int W>
cudaError_t launch_backward(const LifBackward& call, void* workspace, void* stream) {
  const Shape& shape = call.shape;
  const LeakTerms terms(call, W);
  const BackwardCall<S> arguments{Extent(shape),
                                  Rule(call.neuron, call.leak),
                                  leak_source(call),
                                  {static_cast<const S*>(call.x)},
                                  static_cast<const float*>(call.v_init),
                                  static_cast<const float*>(call.checkpoints),
                                  static_cast<const S*>(call.grad_spikes),
                                  static_cast<const float*>(call.grad_v),
                                  call.grad_sam,
                                  static_cast<float>(1.0 / static_cast<double>(shape.steps * shape.channels)),
                                  map_access<W>(call),
                                  {static_cast<S*>(call.grad_x)},
                                  static_cast<float*>(call.grad_v_init),
                                  call.grad_leak ? static_cast<double*>(workspace) : nullptr,
                                  terms.each};
  const bool general = W == 1 || terms.each || shape.repeated || call.grad_leak || arguments.rule.delayed ||
                       arguments.map_access == MapAccess::kScattered;
  const cudaError_t status = general ? launch_backward<S, W, AnyNeuron, 0, true>(arguments, stream)
                                     : launch_lean_backward<S, W>(arguments, stream);
  if (status != cudaSuccess || !call.grad_leak) return status;
  return add_up(terms, static_cast<double*>(workspace), static_cast<float*>(call.grad_leak), stream);
}

template <class S>
cudaError_t launch_lif(const LifBackward& call, void* workspace, void* stream) {
  if (backward_width<S>(call) == 1) return launch_backward<S, 1>(call, workspace, stream);
  return launch_backward<S, kWide<S>>(call, workspace, stream);
}

}  // namespace ckd::cuda
