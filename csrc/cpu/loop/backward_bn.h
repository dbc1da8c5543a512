// The way back through four steps behind a normalisation, in one loop that keeps everything in registers: normalise,
// recompute, surrogate, gradient, and what either pass makes of it. It serves the usual neurons and gives the bits of
// the steps one by one (fused.h, grad_input.h).
#pragma once
#include "ckd/usual.h"
#include "cpu/loop/backward.h"
#include "cpu/loop/normalise.h"
#include "cpu/loop/pairs.h"
#include "cpu/memory/channels.h"

namespace ckd::cpu::CKD_ISA {

// What a group of steps is given, as it is stored; a channel's values in rows, one for each element or block.
template <class L>
struct FusedBnRows {
  Rows<const typename L::Raw> y, residual, gs;
  const float* shift;
  BatchTerms<float> terms;
  const float* leak;
  const float* v;   // v before the first step
  State<float> gv;  // dL/dv after the last step, and before the first
  // Of the pass that sums, without and with these steps:
  State<float> sum, moment;
  // Of the pass that applies:
  Rows<typename L::Raw> gy, grad_residual;
  // Whether a channel's values are given for blocks of elements, all of which are whole then.
  bool has_blocks;
  // Whether lines ahead are asked for, to be read and to be written.
  bool asks_to_read, asks_to_write;
};

// What an element's channel has.
struct BnChannel {
  float scale, shift, mean, offset, slope;
};

CKD_FN BnChannel channel_at(const BatchTerms<float>& terms, const float* shift, int64_t i) {
  return {terms.scale[i], shift[i], terms.mean[i], terms.offset[i], terms.slope[i]};
}

// The way back through the steps of one element, as element_back goes. With Sums it adds to sum and moment, else it
// gives gradients of y and the residual.
template <class N, bool Sums, bool Residual>
CKD_FN void bn_element(const Constants<float>& k, const BnChannel& channel, float leak, float v,
                       const float (&y)[kGroup], const float (&residual)[kGroup], const float (&gs)[kGroup], float& gv,
                       float& sum, float& moment, float (&gy)[kGroup], float (&grad_residual)[kGroup]) {
  float x[kGroup], gx[kGroup];
#pragma GCC unroll 4
  for (int g = 0; g < kGroup; ++g) {
    x[g] = y[g] * channel.scale + channel.shift;
    if constexpr (Residual) x[g] = x[g] + residual[g];
  }
  element_back<kGroup, N::charge, N::reset, typename N::Surrogate>(k, leak, v, x, gs, gv, gx);
#pragma GCC unroll 4
  for (int g = kGroup - 1; g >= 0; --g) {
    const float centred = y[g] - channel.mean;
    if constexpr (Sums) {
      sum = sum + gx[g];
      moment = moment + gx[g] * centred;
    } else {
      gy[g] = ((gx[g] - channel.offset) - centred * channel.slope) * channel.scale;
      if constexpr (Residual) grad_residual[g] = gx[g];
    }
  }
}

// Calls f(i, channel) for the elements begin to end, whose channels' values lie in rows: one for each element, or for
// each block of elements.
template <class L, class F>
CKD_FN void with_channels(const FusedBnRows<L>& rows, int64_t begin, int64_t end, const F& f) {
  const BatchTerms<float> terms = rows.terms;
  const float* __restrict shift = rows.shift;
  if (rows.has_blocks) {
    const BnChannel channel = channel_at(terms, shift, begin / kBlock);
    CKD_SIMD
    for (int64_t i = begin; i < begin + kBlock; ++i) f(i, channel);
  } else {
    CKD_SIMD
    for (int64_t i = begin; i < end; ++i) f(i, channel_at(terms, shift, i));
  }
}

// With Sums, the pass that sums, else the one that applies.
template <class N, bool Sums, bool Residual, class L>
void fused_bn_steps(const Constants<float> k, int64_t n, const FusedBnRows<L> rows) {
  constexpr int G = kGroup;
  constexpr int64_t kToRead = 1024, kToWrite = 512;  // bytes that are looked ahead from block to block
  const typename L::Raw* __restrict y_rows = rows.y.first;
  const typename L::Raw* __restrict residual_rows = rows.residual.first;
  const typename L::Raw* __restrict gs_rows = rows.gs.first;
  typename L::Raw* __restrict gy_rows = rows.gy.first;
  typename L::Raw* __restrict grad_residual_rows = rows.grad_residual.first;
  const float* __restrict leak = rows.leak;
  const float* __restrict v = rows.v;
  const State<float> carry = rows.gv, sums = rows.sum, moments = rows.moment;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    for (int64_t i = begin; i < begin + kBlock && rows.asks_to_read; i += 64 / sizeof(typename L::Raw)) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        prefetch(y_rows + g * rows.y.stride + i, kToRead);
        prefetch(gs_rows + g * rows.gs.stride + i, kToRead);
        if constexpr (Residual) prefetch(residual_rows + g * rows.residual.stride + i, kToRead);
        if (Sums || !rows.asks_to_write) continue;
        prefetch_to_write(gy_rows + g * rows.gy.stride + i, kToWrite);
        if constexpr (Residual) prefetch_to_write(grad_residual_rows + g * rows.grad_residual.stride + i, kToWrite);
      }
    }
    with_channels(
        rows, begin, std::min(n, begin + kBlock),
        [&](int64_t i, const BnChannel& channel) __attribute__((always_inline)) {
          float y[G], residual[G] = {}, gs[G], gy[G], grad_residual[G], sum = 0, moment = 0, gv = carry.before[i];
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) {
            y[g] = L::get(y_rows[g * rows.y.stride + i]);
            gs[g] = L::get(gs_rows[g * rows.gs.stride + i]);
            if constexpr (Residual) residual[g] = L::get(residual_rows[g * rows.residual.stride + i]);
          }
          if constexpr (Sums) sum = sums.before[i], moment = moments.before[i];
          bn_element<N, Sums, Residual>(k, channel, leak[i], v[i], y, residual, gs, gv, sum, moment, gy, grad_residual);
          if constexpr (Sums) {
            sums.after[i] = sum, moments.after[i] = moment;
          } else {
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
              gy_rows[g * rows.gy.stride + i] = L::put(gy[g]);
              if constexpr (Residual) grad_residual_rows[g * rows.grad_residual.stride + i] = L::put(grad_residual[g]);
            }
          }
          carry.after[i] = gv;
        });
  }
}

// The same of rows of bfloat16, two elements at a time, where these steps are the whole sequence, from rest, and
// nothing comes back to it. An odd element at the end is left to the caller.
template <class N, bool Sums, bool Residual>
void fused_bn_pairs(const Constants<float> k, int64_t n, float leak, const FusedBnRows<BFloat16> rows) {
  constexpr int G = kGroup;
  const BatchTerms<float> terms = rows.terms;
  const float* __restrict shift = rows.shift;
  float* __restrict sums = rows.sum.after;
  float* __restrict moments = rows.moment.after;
  const auto pair = [&](int64_t i, const BnChannel& first, const BnChannel& second) __attribute__((always_inline)) {
    float y[2][G], residual[2][G] = {}, gs[2][G], gy[2][G], grad_residual[2][G], sum[2] = {}, moment[2] = {};
    get_pairs(rows.y, i, y);
    get_pairs(rows.gs, i, gs);
    if constexpr (Residual) get_pairs(rows.residual, i, residual);
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      float gv = 0;
      bn_element<N, Sums, Residual>(k, j == 0 ? first : second, leak, k.rest, y[j], residual[j], gs[j], gv, sum[j],
                                    moment[j], gy[j], grad_residual[j]);
      if constexpr (Sums) sums[2 * i + j] = sum[j], moments[2 * i + j] = moment[j];
    }
    if constexpr (!Sums) {
      put_pairs(gy, rows.gy, i);
      if constexpr (Residual) put_pairs(grad_residual, rows.grad_residual, i);
    }
  };
  if (rows.has_blocks) {
    for (int64_t begin = 0; begin < n / 2; begin += kBlock / 2) {
      const BnChannel channel = channel_at(terms, shift, 2 * begin / kBlock);
      CKD_SIMD
      for (int64_t i = begin; i < begin + kBlock / 2; ++i) pair(i, channel, channel);
    }
  } else {
    CKD_SIMD
    for (int64_t i = 0; i < n / 2; ++i) pair(i, channel_at(terms, shift, 2 * i), channel_at(terms, shift, 2 * i + 1));
  }
}

template <class L>
struct FusedBnSteps {
  using AnUsualNeuron = UsualNeuron<Charge::kDecay, Reset::kHard, Triangle>;
  decltype(&fused_bn_steps<AnUsualNeuron, true, false, L>) four = nullptr;
  decltype(&fused_bn_pairs<AnUsualNeuron, true, false>) pairs = nullptr;

  // None where a call asks for more than the loops do, or of another neuron.
  explicit FusedBnSteps(const LifBackward& call);
};

template <class L>
FusedBnSteps<L>::FusedBnSteps(const LifBackward& call) {
  const bool residual = call.affine.residual, sums = call.sums;
  if (!call.affine.scale || !call.mean || !call.grad_spikes || call.grad_sam || call.shape.repeated ||
      (!sums && residual != (call.grad_residual != nullptr))) {
    return;
  }
  with_usual(call.neuron, [&](auto usual) {
    using N = decltype(usual);
    if (sums) {
      four = residual ? fused_bn_steps<N, true, true, L> : fused_bn_steps<N, true, false, L>;
    } else {
      four = residual ? fused_bn_steps<N, false, true, L> : fused_bn_steps<N, false, false, L>;
    }
    if constexpr (std::is_same_v<L, BFloat16>) {
      if (sums) {
        pairs = residual ? fused_bn_pairs<N, true, true> : fused_bn_pairs<N, true, false>;
      } else {
        pairs = residual ? fused_bn_pairs<N, false, true> : fused_bn_pairs<N, false, false>;
      }
    }
  });
}

// Compiled in a file of its own each.
extern template struct FusedBnSteps<Float32>;
extern template struct FusedBnSteps<BFloat16>;

}  // namespace ckd::cpu::CKD_ISA
