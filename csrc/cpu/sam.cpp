// Spike activation map of spikes that exist already.
#include "ckd/cpu.h"
#include "rows.h"
#include "spans.h"

namespace ckd::cpu::CKD_ISA {
namespace {

template <class S>
void average(const SamForward& call, int threads) {
  using Real = typename S::Real;
  using Raw = typename S::Raw;
  const Shape& shape = call.shape;
  const int64_t frame = shape.frame(), row = shape.channels * shape.inner;
  const int64_t x_steps = shape.repeated ? 1 : shape.steps;
  const Raw* spikes = static_cast<const Raw*>(call.spikes);
  Real* map = static_cast<Real*>(call.sam);
  Cut(shape, row * std::max<int64_t>(1, kTile / row)).run(threads, [&] {
    return [&](const Span& span) {
      alignas(64) Real sum[kTile], converted[kTile];
      Real* span_map = map + span.outer * shape.rows * shape.inner;
      const int64_t map_begin = span.begin / row * shape.inner, map_end = span.end / row * shape.inner;
      std::fill(span_map + map_begin, span_map + map_end, Real(0));
      for (int64_t begin = span.begin; begin < span.end; begin += kTile) {
        const int64_t end = std::min(begin + kTile, span.end), n = end - begin;
        fill_row(Real(0), n, sum);
        for (int64_t t = 0; t < shape.steps; ++t) {
          const Raw* from = spikes + (span.outer * x_steps + (x_steps == 1 ? 0 : t)) * frame + begin;
          load_row<S>(from, converted, n);
          CKD_SIMD
          for (int64_t i = 0; i < n; ++i) sum[i] += converted[i];
        }
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
