// Tensors along time. Kernels see the time steps of a tensor through these structs alone; what loads the input
// current through time, and where its gradient is stored, is in current.cuh.
#pragma once
#include "storage.cuh"

namespace ckd::cuda {

// A stored tensor at W neighbours, in the order in which its time steps are used.
template <class S, int W>
struct Series {
  using Packet = Pack<S, W>;  // what one step loads; until its values are used, the load is in flight
  const S* at;                // null: no tensor, all zeros
  int64_t stride;             // from one step to the next; 0: one frame stands for all

  CKD_DEVICE bool given() const { return at != nullptr; }
  CKD_DEVICE Packet load() const { return cuda::load<W>(at); }
  CKD_DEVICE void next() { at += stride; }
};

template <class Packet, int kSize>
struct PacketGroup {
  Packet packet[kSize];
  CKD_DEVICE const Packet& operator[](int i) const { return packet[i]; }
};

// Kernels are compiled for kSteps steps at most, which a thread holds in registers: 1 alone, or 2 to 4; with 0 for any
// number. Whether a call has step t < kSteps.
inline constexpr int kStaticSteps = 4;
template <int kSteps>
CKD_DEVICE bool has_step(int t, int steps) {
  return kSteps == 1 || t < 2 || t < steps;
}

// The packets of a series in groups, loaded before they are needed: with kSteps, all of them at once; with 0,
// kRunTimeGroup while those before them are used. One load in flight for each thread would leave memory idle.
// kBackward: a static series begins at step kSteps - 1, whether there is one or not.
template <class Source, int kSteps, bool kBackward = false, int kRunTimeGroup = 4>
class Stream {
 public:
  static constexpr int kGroup = kSteps;
  using Group = PacketGroup<typename Source::Packet, kGroup>;

  CKD_DEVICE Stream(Source source, int steps) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (has_step<kSteps>(kBackward ? kSteps - 1 - i : i, steps)) group_.packet[i] = source.load();
      source.next();
    }
  }
  CKD_DEVICE const Group& take() const { return group_; }

 private:
  Group group_;
};

template <class Source, bool kBackward, int kRunTimeGroup>
class Stream<Source, 0, kBackward, kRunTimeGroup> {
 public:
  static constexpr int kGroup = kRunTimeGroup;
  using Group = PacketGroup<typename Source::Packet, kGroup>;

  CKD_DEVICE Stream(Source source, int steps) : source_(source), left_(source.given() ? steps : 0) { fetch(); }
  CKD_DEVICE Group take() {
    const Group now = next_;
    fetch();
    return now;
  }

 private:
  CKD_DEVICE void fetch() {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (i < left_) {
        next_.packet[i] = source_.load();
        source_.next();
      }
    }
    left_ -= kGroup;
  }

  Group next_ = {};
  Source source_;
  int left_;
};

}  // namespace ckd::cuda
