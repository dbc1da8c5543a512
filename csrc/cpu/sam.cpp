// Spike activation map of spikes that exist already.
#include "ckd/cpu.h"
#include "cpu/memory/scratch.h"

namespace ckd::cpu::CKD_ISA {
namespace {

// sum += spikes of G steps, in the order of time.
template <int G, class L>
void add_up_steps(int64_t n, Rows<const typename L::Raw> spikes, typename L::Real* __restrict sum) {
  const typename L::Raw* __restrict from = spikes.first;
  CKD_SIMD
  for (int64_t i = 0; i < n; ++i) {
    typename L::Real total = sum[i];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) total = total + L::get(from[g * spikes.stride + i]);
    sum[i] = total;
  }
}

template <class S>
void average(const SamForward& call, int threads) {
  using Real = typename S::Real;
  using Raw = typename S::Raw;
  const Shape& shape = call.shape;
  const Address at(shape);
  const int64_t row = shape.channels * shape.inner;
  const Raw* spikes = static_cast<const Raw*>(call.spikes);
  Real* map = static_cast<Real*>(call.sam);
  Cut(shape, row * std::max<int64_t>(1, kTile / row)).run(threads, [&] {
    return [&](const Span& span) {
      alignas(64) Real sum[kTile], converted[kGroup * kTile];
      Real* span_map = map + span.outer * shape.rows * shape.inner;
      const int64_t map_begin = span.begin / row * shape.inner, map_end = span.end / row * shape.inner;
      std::fill(span_map + map_begin, span_map + map_end, Real(0));
      for (int64_t begin = span.begin; begin < span.end; begin += kTile) {
        const int64_t end = std::min(begin + kTile, span.end), n = end - begin;
        fill_row(Real(0), n, sum);
        in_groups(0, shape.steps, [&](int64_t t, auto group) {
          constexpr int G = decltype(group)::value;
          const Rows<const Raw> from{spikes + at.x(span.outer, t, begin), shape.repeated ? 0 : at.frame};
          add_up_steps<G, typename InLoop<S>::type>(n, loop_rows<G, S>(from, n, {converted, kTile}), sum);
        });
        gather_locations(shape, begin, end, sum, span_map);
      }
      const Real total = static_cast<Real>(shape.steps * shape.channels);
      for (int64_t i = map_begin; i < map_end; ++i) span_map[i] = span_map[i] / total;
    };
  });
}

}  // namespace

void run(const SamForward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { average<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
