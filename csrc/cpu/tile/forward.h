// Multi-step neurons forward on a CPU: a tile of elements runs through all time steps while its state stays in cache.
#pragma once
#include <memory>

#include "cpu/loop/forward.h"
#include "cpu/tile/inputs.h"
#include "cpu/tile/outputs.h"
#include "cpu/tile/state.h"

namespace ckd::cpu::CKD_ISA {

// Which storage types have loops for whole sequences from rest: those that networks train with on a CPU.
template <class S>
inline constexpr bool kHasWholeSequences =
#ifdef CKD_FUSED
    std::is_same_v<S, Float32> || std::is_same_v<S, BFloat16>;
#else
    false;
#endif

// A span of whole locations, about a tile long where rows are short.
inline int64_t whole_locations(const Shape& shape, int64_t tile) {
  const int64_t row = shape.channels * shape.inner;
  return row * std::max<int64_t>(1, tile / row);
}

// One tile through time; `In` is the storage type of what the steps read, x's own or the arithmetic's.
template <class S, class In>
class ForwardTile {
  using Real = typename S::Real;
  using Raw = typename S::Raw;
  template <class T>
  using LanesOf = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, Single<T>>;
  using Lanes = LanesOf<In>;

 public:
  ForwardTile(const LifForward& call, int64_t length)
      : call_(call),
        shape_(call.shape),
        at_(call.shape),
        k_(call.neuron),
        reach_(reach_for(shape_.steps, Input<S, In>::kCopies || call.affine.scale)),
        loops_(spike_loops<Lanes, Source::kPlain, Start::kState, S>(call.neuron, call.sam)),
        // One group of steps is the whole sequence, and nobody asks for its state.
        is_whole_(kHasWholeSequences<S> && is_one_group(shape_.steps) && !call.v_init && !call.v_last && !call.leak),
        scratch_(length, 2 + LeakRow<Lanes>::kRows + Output<Raw>::kRows + Input<S, In>::kRows),
        input_(call, reach_, false, scratch_),
        v_(scratch_.rows(1)),
        rest_(scratch_.rows(1)),
        leak_(call, scratch_),
        output_(at_.elements() * static_cast<int64_t>(sizeof(Raw)), reach_.to_write, scratch_) {
    fill_row(k_.rest, scratch_.stride(), rest_);
    if constexpr (kHasWholeSequences<S>) {
      with_source(call.affine, [&](auto source) {
        whole_loops_ = spike_loops<LanesOf<S>, decltype(source)::value, Start::kRest, S>(call.neuron, call.sam);
      });
    }
  }

  // `map`, if not null: the spikes that each location has fired so far.
  void run(int64_t outer, int64_t begin, int64_t end, uint32_t* map) {
    const int64_t n = end - begin, state = at_.state(outer, begin);
    input_.start(outer, begin, end);
    leak_.start(begin, end);
    if (map && !is_whole_) std::fill(count_, count_ + n, 0u);
    const Real* before = rest_;
    if (call_.v_init)
      before = Lanes::view_state(static_cast<const Real*>(call_.v_init) + state, n, v_, scratch_.half());
    in_groups(0, shape_.steps, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      const Rows<Raw> spikes{static_cast<Raw*>(call_.spikes) + at_.step(outer, t, begin), at_.frame};
      in_blocks(n, reach_.block / sizeof(Raw), [&](int64_t first, int64_t length) {
        const Rows<Raw> output = output_.rows(spikes, first, G, length);
        if (is_whole_) return whole_steps<G>(t, first, length, output);
        ForwardRows<In, S> rows{};
        rows.x = input_.template rows<G>(t, first, length);
        rows.to = output;
        rows.count = count_ + first;
        const int64_t at = first / Lanes::kWidth;
        rows.leaks = leak_.row() + at, rows.before = before + at, rows.after = v_ + at, rows.half = scratch_.half();
        loops_.template get<G>()(k_, length, rows);
      });
      output_.send(spikes, G, n);
      before = v_;
      const int64_t done = t + G;
      if (call_.checkpoints && done % kCheckpointEvery == 0 && done < shape_.steps) {
        save_state(n, call_.checkpoints, (done / kCheckpointEvery - 1) * shape_.outer * at_.frame + state);
      }
    });
    if (call_.v_last) save_state(n, call_.v_last, state);
    if (map) gather_locations(shape_, begin, end, count_, map);
  }

 private:
  void save_state(int64_t n, void* to, int64_t at) const {
    Lanes::store_state(v_, scratch_.half(), n, static_cast<Real*>(to) + at);
  }

  template <int G>
  void whole_steps(int64_t t, int64_t first, int64_t n, Rows<Raw> output) {
    if constexpr (kHasWholeSequences<S>) {
      ForwardRows<S, S> rows{};
      rows.x = input_.template x_rows<G>(t, first, n);
      rows.residual = input_.template residual_rows<G>(t, first, n);
      rows.terms = input_.terms(first);
      rows.to = output;
      rows.count = count_ + first;
      rows.leak = Real(call_.neuron.leak);
      whole_loops_.template get<G>()(k_, n, rows);
    }
  }

  const LifForward& call_;
  const Shape& shape_;
  const Address at_;
  const Constants<Real> k_;
  const Reach reach_;
  const ByGroup<ForwardLoop<In, S>> loops_;
  ByGroup<ForwardLoop<S, S>> whole_loops_;
  const bool is_whole_;
  Scratch<Real> scratch_;
  Input<S, In> input_;
  Real *v_, *rest_;
  LeakRow<Lanes> leak_;
  Output<Raw> output_;
  alignas(64) uint32_t count_[kTile];
};

template <class S, class In>
void forward_as(const LifForward& call, int threads) {
  const Shape& shape = call.shape;
  const int64_t tile_size = tile_for(shape.steps, Input<S, In>::kCopies || call.affine.scale),
                row = shape.channels * shape.inner;
  // Counts are integers until the end, in the memory of the map itself.
  uint32_t* map = reinterpret_cast<uint32_t*>(call.sam);
  Cut(shape, map ? whole_locations(shape, tile_size) : tile_size).run(threads, [&] {
    return [&, tile = std::make_unique<ForwardTile<S, In>>(call, tile_size)](const Span& span) {
      uint32_t* span_map = map ? map + span.outer * shape.rows * shape.inner : nullptr;
      const int64_t map_begin = span.begin / row * shape.inner, map_end = span.end / row * shape.inner;
      if (map) std::fill(span_map + map_begin, span_map + map_end, 0u);
      for (int64_t begin = span.begin; begin < span.end; begin += tile_size) {
        tile->run(span.outer, begin, std::min(begin + tile_size, span.end), span_map);
      }
      if (!map) return;
      const float total = static_cast<float>(shape.steps * shape.channels);
      for (int64_t i = map_begin; i < map_end; ++i)
        span_map[i] = bit_cast<uint32_t>(static_cast<float>(span_map[i]) / total);
    };
  });
}

// Rows that a normalisation makes are of the arithmetic's type.
template <class S>
void forward(const LifForward& call, int threads) {
  if (call.affine.scale) {
    forward_as<S, RealOf<S>>(call, threads);
  } else {
    forward_as<S, typename InLoop<S>::type>(call, threads);
  }
}

}  // namespace ckd::cpu::CKD_ISA
