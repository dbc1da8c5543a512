// A few time steps backward in one loop that keeps everything in registers: potentials, which are computed again,
// surrogate, gradient, and where that goes. Most training steps are made of these calls, and at the speed of memory
// only such a loop keeps up; what it does not serve takes the general path (general.h), with the same bits.
#pragma once
#include "ckd/usual.h"
#include "cpu/loop/forward.h"
#include "cpu/memory/channels.h"

namespace ckd::cpu::CKD_ISA {

// Where the gradient of what charged the neurons goes: to x, or behind a normalisation to the sums over each channel
// (the first pass), or with what follows from them to y and the residual (the second pass).
enum class Sink { kStore, kSums, kApply };

// What the loop is a part of: of a longer sequence or one with a state, which has rows; of none, where its steps are a
// whole sequence from rest to which nothing comes back; and the same with a gradient of its map, which joins that of
// every step.
enum class Part { kMany, kWhole, kWholeWithMap };

// A row before a loop, and after it.
struct Carry {
  const float* before;
  float* after;
};

// What a group of steps is given, as it is stored; null where it has none.
template <class S>
struct BackwardRows {
  Rows<const typename S::Raw> x, residual, gs;
  ChannelTerms<float> terms;
  Rows<typename S::Raw> gx, grad_residual;
  Carry sum, moment;      // of Sink::kSums, without and with these steps
  const float* from_map;  // of Part::kWholeWithMap, what comes from the map to every step of an element
  // Of Part::kMany, in the order of the loop's lanes: leaks, v before the first step, dL/dv after the last step and
  // before the first.
  const float *leaks, *v;
  Carry gv;
  int64_t half;
  float leak;  // of the others
  // Of the terms of channels: whether they are given for blocks of elements, all of which are whole then; and whether
  // lines ahead are prefetched, to be read and to be written.
  bool has_blocks, prefetches_reads, prefetches_writes;
};

template <class S>
using BackwardLoop = void (*)(Constants<float>, int64_t, const BackwardRows<S>&);

// The steps of one element: v is what it was before the first of them; gv, dL/dv after the last, becomes dL/dv before
// the first.
template <class N, int G>
CKD_FN void element_backward(const Constants<float>& k, float leak, float v, const float (&x)[G], const float (&gs)[G],
                             float& gv, float (&gx)[G]) {
  float h[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    h[g] = potential<N::charge, N::reset>(v, x[g], leak, k);
    v = after_reset<N::reset>(h[g], k);
  }
#pragma GCC unroll 4
  for (int g = G - 1; g >= 0; --g) {
    const float sg = N::Surrogate::derivative(h[g] - k.threshold, k.c0, k.c1);
    const float gh = fire_backward<N::reset>(h[g], gs[g], gv, sg, k);
    gx[g] = grad_input<N::charge>(gh, leak);
    gv = grad_before<N::charge>(gh, leak);
  }
}

// Prefetches what lies ahead of a block of elements: to be read, and of Sink::kApply to be written.
template <int G, Source X, Sink To, class S>
CKD_FN void prefetch_block(const BackwardRows<S>& rows, int64_t begin) {
  constexpr int64_t kToRead = 1024, kToWrite = 512, kLine = 64;  // bytes
  for (int64_t i = begin; i < begin + kBlock; i += kLine / sizeof(typename S::Raw)) {
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      prefetch(rows.x.first + g * rows.x.stride + i, kToRead);
      prefetch(rows.gs.first + g * rows.gs.stride + i, kToRead);
      if (X == Source::kResidual) prefetch(rows.residual.first + g * rows.residual.stride + i, kToRead);
      if (To != Sink::kApply || !rows.prefetches_writes) continue;
      prefetch_to_write(rows.gx.first + g * rows.gx.stride + i, kToWrite);
      if (X != Source::kResidual) continue;
      prefetch_to_write(rows.grad_residual.first + g * rows.grad_residual.stride + i, kToWrite);
    }
  }
}

template <class N, int G, class L, Source X, Part P, Sink To>
void backward_steps(const Constants<float> k, int64_t n, const BackwardRows<typename L::Storage>& given) {
  const auto rows = given;  // which no store can change
  // `terms(element)`: the element's channel.
  const auto iteration = [&](auto lanes, int64_t i, const auto& terms) __attribute__((always_inline)) {
    using Lanes = decltype(lanes);
    constexpr int W = Lanes::kWidth;
    float y[W][G], residual[W][G] = {}, gs[W][G], gx[W][G], gy[W][G];
    Lanes::load(rows.x, i, y);
    Lanes::load(rows.gs, i, gs);
    if constexpr (X == Source::kResidual) Lanes::load(rows.residual, i, residual);
#pragma GCC unroll 2
    for (int j = 0; j < W; ++j) {
      const int64_t element = Lanes::element(i, j), at = Lanes::state(i, j, rows.half);
      Channel<float> channel{};
      if constexpr (X != Source::kPlain) channel = terms(element);
      float x[G], leak = rows.leak, v = k.rest, gv = 0;
      if constexpr (P == Part::kMany) leak = rows.leaks[at], v = rows.v[at], gv = rows.gv.before[at];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        x[g] = charged_by<X>(y[j][g], residual[j][g], channel.scale, channel.shift);
        if constexpr (P == Part::kWholeWithMap) gs[j][g] = gs[j][g] + rows.from_map[element];
      }
      element_backward<N>(k, leak, v, x, gs[j], gv, gx[j]);
      if constexpr (P == Part::kMany) rows.gv.after[at] = gv;
      if constexpr (To == Sink::kStore) continue;
      float sum = 0, moment = 0;
      if constexpr (To == Sink::kSums && P == Part::kMany) {
        sum = rows.sum.before[element], moment = rows.moment.before[element];
      }
#pragma GCC unroll 4
      for (int g = G - 1; g >= 0; --g) {
        const float centred = y[j][g] - channel.mean;
        sum = sum + gx[j][g];
        moment = moment + gx[j][g] * centred;
        gy[j][g] = grad_normalised(gx[j][g], centred, channel.offset, channel.slope, channel.scale);
      }
      if constexpr (To == Sink::kSums) rows.sum.after[element] = sum, rows.moment.after[element] = moment;
    }
    if constexpr (To == Sink::kStore) Lanes::store(gx, rows.gx, i);
    if constexpr (To == Sink::kApply) {
      Lanes::store(gy, rows.gx, i);
      if constexpr (X == Source::kResidual) Lanes::store(gx, rows.grad_residual, i);
    }
  };
  const auto with_each = [&](auto lanes, int64_t i) __attribute__((always_inline)) {
    iteration(lanes, i, [&](int64_t element) __attribute__((always_inline)) { return rows.terms[element]; });
  };
  if constexpr (X == Source::kPlain) {
    in_lanes<L>(0, n, with_each);
  } else {
    // Pairs are bound by arithmetic.
    const bool prefetches = L::kWidth == 1 && rows.prefetches_reads;
    const int64_t block = rows.has_blocks || prefetches ? kBlock : n;
    for (int64_t begin = 0; begin < n; begin += block) {
      if (prefetches) prefetch_block<G, X, To>(rows, begin);
      if (rows.has_blocks) {
        const Channel<float> channel = rows.terms[begin / kBlock];
        const int64_t first = begin / L::kWidth;
        CKD_SIMD
        for (int64_t i = first; i < first + kBlock / L::kWidth; ++i) {
          iteration(L(), i, [&](int64_t) __attribute__((always_inline)) { return channel; });
        }
      } else {
        in_lanes<L>(begin, std::min(n, begin + block), with_each);
      }
    }
  }
  if (n % L::kWidth != 0) with_each(typename L::Tail(), n / L::kWidth);
}

// Each of these is compiled in a file of its own (backward_*.cpp).

// Of rows of float, for every neuron.
ByGroup<BackwardLoop<Float32>> backward_loops(const Neuron& neuron);

// Of rows of bfloat16, in pairs, for the usual neurons.
ByGroup<BackwardLoop<BFloat16>> backward_pair_loops(const Neuron& neuron, Part part);

// Of a group of four steps behind a normalisation, for the usual neurons: null where a call asks for more than the loop
// does, or of another neuron. `whole`: whether the steps are a Part::kWhole; they go in pairs then if they can.
template <class S>
BackwardLoop<S> backward_bn_loop(const LifBackward& call, bool whole) {
  const bool sums = call.sums;
  BackwardLoop<S> loop = nullptr;
  if (!call.affine.scale || !call.mean || !call.grad_spikes || call.grad_sam || call.shape.repeated ||
      (!sums && !call.affine.residual != !call.grad_residual)) {
    return loop;
  }
  with_usual(call.neuron, [&](auto neuron) {
    using N = decltype(neuron);
    with_source(call.affine, [&](auto source) {
      constexpr Source X = decltype(source)::value;
      if constexpr (X != Source::kPlain) {
        loop = sums ? backward_steps<N, kGroup, Single<S>, X, Part::kMany, Sink::kSums>
                    : backward_steps<N, kGroup, Single<S>, X, Part::kMany, Sink::kApply>;
        if constexpr (std::is_same_v<S, BFloat16>) {
          if (!whole) return;
          loop = sums ? backward_steps<N, kGroup, Pair, X, Part::kWhole, Sink::kSums>
                      : backward_steps<N, kGroup, Pair, X, Part::kWhole, Sink::kApply>;
        }
      }
    });
  });
  return loop;
}

extern template BackwardLoop<Float32> backward_bn_loop<Float32>(const LifBackward&, bool);
extern template BackwardLoop<BFloat16> backward_bn_loop<BFloat16>(const LifBackward&, bool);

}  // namespace ckd::cpu::CKD_ISA
