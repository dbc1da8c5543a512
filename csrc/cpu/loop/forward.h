// A few time steps forward in one loop that keeps everything in registers from step to step: what charges the neurons,
// their potentials, and what is kept of them. The rows of all steps are read side by side, which is what the hardware's
// prefetchers can follow. The choices are template arguments.
#pragma once
#include "ckd/neuron.h"
#include "cpu/loop/lanes.h"
#include "cpu/loop/normalise.h"
#include "cpu/loop/select.h"

namespace ckd::cpu::CKD_ISA {

// Where a loop's neurons come from: a state that other steps have left, or rest, where the steps are a whole sequence
// with one constant leak.
enum class Start { kState, kRest };

// What is kept of potentials.
enum class Keep { kSpikes, kSpikesAndCounts, kPotentials, kNothing };

// What a group of steps is given; null where it has none.
template <class S, class Out>
struct ForwardRows {
  using Real = typename S::Real;
  Rows<const typename S::Raw> x, residual;
  ChannelTerms<Real> terms;
  Rows<typename Out::Raw> to;  // spikes, or potentials
  uint32_t* count;             // how often each element has fired; of Start::kRest, in these steps alone
  // Of Start::kState, in the order of the loop's lanes; the state before and after the steps may be one row.
  const Real *leaks, *before;
  Real* after;
  int64_t half;
  // Of Start::kRest.
  Real leak;
};

template <class S, class Out>
using ForwardLoop = void (*)(Constants<typename S::Real>, int64_t, const ForwardRows<S, Out>&);

template <int G, Charge C, Reset R, class L, Source X, Start From, Keep K, class Out>
void forward_steps(const Constants<typename L::Real> k, int64_t n, const ForwardRows<typename L::Storage, Out>& given) {
  using Real = typename L::Real;
  const auto rows = given;  // which no store can change
  const auto iteration = [&](auto lanes, int64_t i) __attribute__((always_inline)) {
    using Lanes = decltype(lanes);
    Real x[Lanes::kWidth][G], residual[Lanes::kWidth][G] = {}, h[Lanes::kWidth][G];
    Lanes::load(rows.x, i, x);
    if constexpr (X == Source::kResidual) Lanes::load(rows.residual, i, residual);
#pragma GCC unroll 2
    for (int j = 0; j < Lanes::kWidth; ++j) {
      const int64_t element = Lanes::element(i, j), at = Lanes::state(i, j, rows.half);
      Real leak = rows.leak, v = k.rest;
      if constexpr (From == Start::kState) leak = rows.leaks[at], v = rows.before[at];
      uint32_t fired = 0;
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        if constexpr (X != Source::kPlain) {
          x[j][g] = charged_by<X>(x[j][g], residual[j][g], rows.terms.scale[element], rows.terms.shift[element]);
        }
        h[j][g] = potential<C, R>(v, x[j][g], leak, k);
        v = after_reset<R>(h[j][g], k);
        fired += h[j][g] >= k.fire_level ? 1u : 0u;
      }
      if constexpr (From == Start::kState) rows.after[at] = v;
      if constexpr (K == Keep::kSpikesAndCounts) {
        rows.count[element] = From == Start::kState ? rows.count[element] + fired : fired;
      }
    }
    using To = typename Lanes::template As<Out>;
    if constexpr (K == Keep::kPotentials) To::store(h, rows.to, i);
    if constexpr (K == Keep::kSpikes || K == Keep::kSpikesAndCounts) To::store_spikes(h, k.fire_level, rows.to, i);
  };
  in_lanes<L>(0, n, iteration);
  if (n % L::kWidth != 0) iteration(typename L::Tail(), n / L::kWidth);
}

template <class L, Source X, Start From, Keep K, class Out>
inline auto forward_loops(const Neuron& neuron) {
  ByGroup<ForwardLoop<typename L::Storage, Out>> loops;
  with_charge_and_reset(neuron, [&](auto charge, auto reset) {
    loops = by_group([](auto group) -> ForwardLoop<typename L::Storage, Out> {
      return forward_steps<decltype(group)::value, decltype(charge)::value, decltype(reset)::value, L, X, From, K, Out>;
    });
  });
  return loops;
}

// Those that store spikes, and count them where asked to.
template <class L, Source X, Start From, class Out>
inline auto spike_loops(const Neuron& neuron, bool count) {
  return count ? forward_loops<L, X, From, Keep::kSpikesAndCounts, Out>(neuron)
               : forward_loops<L, X, From, Keep::kSpikes, Out>(neuron);
}

}  // namespace ckd::cpu::CKD_ISA
