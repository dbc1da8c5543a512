// Tensors along time: what charges the neurons, and where its gradients go; here x itself. Kernels see the time steps
// of both through these structs alone, so that another source is another struct and not another kernel.
#pragma once
#include "storage.cuh"

namespace ckd::cuda {

// A stored tensor, at W neighbours of one time step.
template <class S>
struct Series {
  const S* at;

  template <int W>
  using Packet = Pack<S, W>;

  CKD_DEVICE void advance(int64_t elements) { at += elements; }

  // What is loaded, and what it comes to. Between the two it is in flight.
  template <int W>
  CKD_DEVICE Packet<W> load() const {
    return cuda::load<W>(at);
  }
  template <int W>
  static CKD_DEVICE void values(const Packet<W>& packet, float (&x)[W]) {
    widen(packet, x);
  }
};

template <class S>
struct SeriesGradient {
  S* at;

  CKD_DEVICE void advance(int64_t elements) { at += elements; }
  template <int W>
  CKD_DEVICE void store(const float (&gradient)[W]) const {
    cuda::store(at, narrow<S>(gradient));
  }
};

// The packets of a series in the order of their use, `stride` elements apart, before they are needed: all kSteps of
// them at once, or, with 0, where the number is known at run time only, the next one while one is used.
template <class Source, int W, int kSteps>
class Stream {
  typename Source::template Packet<W> packets_[kSteps];

 public:
  CKD_DEVICE Stream(Source source, int64_t stride) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      packets_[i] = source.template load<W>();
      source.advance(stride);
    }
  }
  CKD_DEVICE const auto& take(int i, int) const { return packets_[i]; }
};

template <class Source, int W>
class Stream<Source, W, 0> {
  using Packet = typename Source::template Packet<W>;
  Source source_;
  const int64_t stride_;  // 0: one packet stands for all
  Packet next_ = {};      // zeros, where there is no tensor

 public:
  CKD_DEVICE Stream(Source source, int64_t stride) : source_(source), stride_(source.at ? stride : 0) {
    if (source.at) next_ = source_.template load<W>();
  }
  CKD_DEVICE Packet take(int i, int steps) {
    const Packet now = next_;
    if (i + 1 < steps && stride_ != 0) {
      source_.advance(stride_);
      next_ = source_.template load<W>();
    }
    return now;
  }
};

}  // namespace ckd::cuda
