// Multi-step neurons on a CPU: a tile of elements runs through all time steps while its state stays in cache.
#pragma once
#include <memory>

#include "cpu/loop/forward_whole.h"
#include "cpu/loop/pairs.h"
#include "cpu/loop/select.h"
#include "cpu/tile/input.h"
#include "cpu/tile/output.h"

namespace ckd::cpu::CKD_ISA {

// A span of whole locations, about a tile long where rows are short.
inline int64_t whole_locations(const Shape& shape, int64_t tile) {
  const int64_t row = shape.channels * shape.inner;
  return row * std::max<int64_t>(1, tile / row);
}

// One tile's way through time; `In` is the storage type of what the steps read, x's own or the arithmetic's.
template <class S, class In>
class ForwardTile {
  using Real = typename S::Real;
  using Raw = typename S::Raw;
  // Whether the steps go in pairs, and rows of state lie in halves.
  static constexpr bool kPairs = std::is_same_v<S, BFloat16> && std::is_same_v<In, BFloat16>;

 public:
  ForwardTile(const LifForward& call, int64_t length)
      : call_(call),
        shape_(call.shape),
        at_(call.shape),
        k_(call.neuron),
        reach_(reach_for(shape_.steps, Input<S, In>::kCopies || call.affine.scale)),
        steps_(call.neuron, call.sam != nullptr),
        whole_steps_(call.neuron, call.sam != nullptr, source(call)),
        // Whether one group of steps is the whole sequence, and nobody asks for its state.
        whole_(kHasWholeSteps<S> && is_one_group(shape_.steps) && !call.v_init && !call.v_last && !call.leak),
        scratch_(length, 4 + Output<Raw>::kRows + Input<S, In>::kRows),
        input_(call, reach_, false, scratch_),
        v_(scratch_.rows(1)),
        rest_(scratch_.rows(1)),
        leak_(scratch_.rows(1)),
        row_(scratch_.rows(1)),
        output_(at_.elements() * static_cast<int64_t>(sizeof(Raw)), reach_.to_write, scratch_) {
    if (!call.leak_per_channel) fill_leak(call, scratch_.stride(), leak_);
    fill_row(k_.rest, scratch_.stride(), rest_);
  }

  // `map`, where asked for: the spikes that each location has fired so far.
  void run(int64_t outer, int64_t begin, int64_t end, uint32_t* map) {
    const int64_t n = end - begin, state = at_.state(outer, begin);
    input_.start(outer, begin, end);
    if (call_.leak_per_channel) {
      spread_channels(shape_, begin, end, static_cast<const Real*>(call_.leak), kPairs ? row_ : leak_);
      if constexpr (kPairs) split_row(row_, n, halves(leak_));
    }
    if (map && !whole_) std::fill(count_, count_ + n, 0u);
    const Real* before = call_.v_init ? given_state(state, n) : rest_;
    in_groups(0, shape_.steps, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      const Rows<Raw> spikes{static_cast<Raw*>(call_.spikes) + at_.step(outer, t, begin), at_.frame};
      in_blocks(n, reach_.block / sizeof(Raw), [&](int64_t first, int64_t length) {
        const Rows<Raw> output = output_.rows(spikes, first, G, length);
        if constexpr (kHasWholeSteps<S>) {
          if (whole_) {
            return whole_steps_.steps.template get<G>()(k_, length, whole_rows<G>(t, first, length, output));
          }
        }
        if constexpr (kPairs) {
          steps_.steps.template get<G>()(
              k_, length, input_.template x_rows<G>(t, first, length),
              {halves(leak_).from(first / 2), halves(before).from(first / 2), halves(v_).from(first / 2)}, output,
              count_ + first);
        } else {
          steps_.steps.template get<G>()(k_, length, input_.template rows<G>(t, first, length), leak_ + first,
                                         {before + first, v_ + first}, output, count_ + first);
        }
      });
      output_.send(spikes, G, n);
      before = v_;
      const int64_t done = t + G;
      if (call_.checkpoints && done % kCheckpointEvery == 0 && done < shape_.steps) {
        const int64_t chunk = done / kCheckpointEvery - 1;
        Real* to = static_cast<Real*>(call_.checkpoints) + chunk * shape_.outer * at_.frame;
        save_state(n, to + state);
      }
    });
    if (call_.v_last) save_state(n, static_cast<Real*>(call_.v_last) + state);
    if (map) gather_locations(shape_, begin, end, count_, map);
  }

 private:
  template <class T>
  Halves<T> halves(T* row) const {
    return {row, scratch_.stride() / 2};
  }

  const Real* given_state(int64_t state, int64_t n) {
    const Real* given = static_cast<const Real*>(call_.v_init) + state;
    if constexpr (kPairs) {
      split_row(given, n, halves(v_));
      return v_;
    } else {
      return given;
    }
  }

  void save_state(int64_t n, Real* to) const {
    if constexpr (kPairs) {
      join_row(halves(static_cast<const float*>(v_)), n, to);
    } else {
      std::memcpy(to, v_, n * sizeof(Real));
    }
  }

  static Source source(const LifForward& call) {
    if (!call.affine.scale) return Source::kPlain;
    return call.affine.residual ? Source::kResidual : Source::kNormalised;
  }

  template <int G>
  WholeRows<S> whole_rows(int64_t t, int64_t first, int64_t n, Rows<Raw> output) {
    return {input_.template x_rows<G>(t, first, n),
            input_.template residual_rows<G>(t, first, n),
            input_.scale() + first,
            input_.shift() + first,
            Real(call_.neuron.leak),
            output,
            count_ + first};
  }

  const LifForward& call_;
  const Shape& shape_;
  const Address at_;
  const Constants<Real> k_;
  const Reach reach_;
  const std::conditional_t<kPairs, ForwardPairs, ForwardSteps<In, S>> steps_;
  struct NoWholeSteps {
    NoWholeSteps(const Neuron&, bool, Source) {}
  };
  const std::conditional_t<kHasWholeSteps<S>, WholeSteps<S>, NoWholeSteps> whole_steps_;
  const bool whole_;
  Scratch<Real> scratch_;
  Input<S, In> input_;
  Real *v_, *rest_, *leak_, *row_;
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
