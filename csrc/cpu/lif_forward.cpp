// Multi-step neurons on a CPU: a tile of elements runs through all time steps while its state stays in cache.
#include "choose.h"
#include "ckd/cpu.h"
#include "spans.h"
#include "tile.h"

namespace ckd::cpu::CKD_ISA {
namespace {

// A span of whole locations, about a tile long where rows are short.
int64_t whole_rows(const Shape& shape, int64_t tile) {
  const int64_t row = shape.channels * shape.inner;
  return row * std::max<int64_t>(1, tile / row);
}

template <class S>
void forward(const LifForward& call, int threads) {
  using Real = typename S::Real;
  using Raw = typename S::Raw;
  const Shape& shape = call.shape;
  const Address at(shape);
  const Constants<Real> k(call.neuron);
  const ForwardSteps<typename InLoop<S>::type, S> forward_steps(call.neuron, call.sam != nullptr);
  const Raw* x = static_cast<const Raw*>(call.x);
  Raw* spikes = static_cast<Raw*>(call.spikes);
  // Counts are integers until the end, in the memory of the map itself.
  uint32_t* map = reinterpret_cast<uint32_t*>(call.sam);
  const int64_t tile = tile_for(shape.steps);
  // Whether one group of steps is the whole sequence, and nobody asks for its state.
  const bool whole =
      (shape.steps == 4 || shape.steps == 2 || shape.steps == 1) && !call.v_init && !call.v_last && !call.leak && !map;

  Cut(shape, map ? whole_rows(shape, tile) : tile).run(threads, [&] {
    return [&](const Span& span) {
      alignas(64) Real v[kTile], rest[kTile], leak[kTile], converted[kConverts<S> ? kGroup * kTile : 1];
      alignas(64) uint32_t count[kTile];
      if (!call.leak_per_channel) fill_leak(call, leak);
      fill_row(k.rest, kTile, rest);
      uint32_t* span_map = map + span.outer * shape.rows * shape.inner;
      const int64_t row = shape.channels * shape.inner;
      const int64_t map_begin = span.begin / row * shape.inner, map_end = span.end / row * shape.inner;
      if (map) std::fill(span_map + map_begin, span_map + map_end, 0u);

      for (int64_t begin = span.begin; begin < span.end; begin += tile) {
        const int64_t end = std::min(begin + tile, span.end), n = end - begin;
        if (call.leak_per_channel) {
          spread_channels(shape, begin, end, static_cast<const Real*>(call.leak), leak);
        }
        const Real* before = call.v_init ? static_cast<const Real*>(call.v_init) + at.state(span.outer, begin) : rest;
        if (map) std::fill(count, count + n, 0u);
        in_groups(0, shape.steps, [&](int64_t t, auto group) {
          constexpr int G = decltype(group)::value;
          const auto input = input_rows<G, S>(x, at, shape.repeated, span.outer, t, begin, n, converted);
          const Rows<Raw> output{spikes + at.step(span.outer, t, begin), at.frame};
          if (whole) return forward_steps.from_rest.template get<G>()(k, n, input, Real(call.neuron.leak), output);
          forward_steps.steps.template get<G>()(k, n, input, leak, {before, v}, output, count);
          before = v;
          const int64_t done = t + G;
          if (call.checkpoints && done % kCheckpointEvery == 0 && done < shape.steps) {
            const int64_t chunk = done / kCheckpointEvery - 1;
            Real* to = static_cast<Real*>(call.checkpoints) + chunk * shape.outer * at.frame;
            std::memcpy(to + at.state(span.outer, begin), v, n * sizeof(Real));
          }
        });
        if (call.v_last) {
          std::memcpy(static_cast<Real*>(call.v_last) + at.state(span.outer, begin), v, n * sizeof(Real));
        }
        if (map) gather_locations(shape, begin, end, count, span_map);
      }
      if (map) {
        const float total = static_cast<float>(shape.steps * shape.channels);
        for (int64_t i = map_begin; i < map_end; ++i)
          span_map[i] = bit_cast<uint32_t>(static_cast<float>(span_map[i]) / total);
      }
    };
  });
}

}  // namespace

void run(const LifForward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { forward<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
