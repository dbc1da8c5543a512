// Multi-step neurons backward on a CPU, tile by tile.
#include <algorithm>
#include <memory>
#include <vector>

#include "ckd/cpu.h"
#include "cpu/tile/backward_fused.h"
#include "cpu/tile/backward_general.h"

namespace ckd::cpu::CKD_ISA {
namespace {

// How many sums over elements a call wants.
int64_t count_sums(const LifBackward& call) {
  if (call.sums) return 2 * call.shape.channels;
  if (call.grad_leak) return call.leak_per_channel ? call.shape.channels : 1;
  return 0;
}

template <class Tile>
void tile_by_tile(const LifBackward& call, int threads) {
  const int64_t tile_size = Tile::length(call);
  const Cut cut(call.shape, tile_size, count_sums(call));
  PartialSums partial(cut.parts(), count_sums(call));
  cut.run(threads, [&] {
    return [&, tile = std::make_unique<Tile>(call, tile_size)](const Span& span) {
      for (int64_t begin = span.begin; begin < span.end; begin += tile_size) {
        tile->run(span.outer, begin, std::min(begin + tile_size, span.end), partial.of(span.part));
      }
    };
  });
  const std::vector<double> sums = partial.total();
  if (call.sums) std::copy(sums.begin(), sums.end(), call.sums);
  if (call.grad_leak) std::copy(sums.begin(), sums.end(), static_cast<typename Tile::Real*>(call.grad_leak));
}

template <class S>
void backward(const LifBackward& call, int threads) {
#ifdef CKD_FUSED
  if constexpr (!std::is_same_v<S, Float64>) {
    if (is_fused(call)) {
      if constexpr (std::is_same_v<S, BFloat16>) {
        if (PairTile::serves(call)) return tile_by_tile<PairTile>(call, threads);
      }
      return tile_by_tile<FusedTile<S>>(call, threads);
    }
  }
#endif
  tile_by_tile<GeneralTile<S>>(call, threads);
}

}  // namespace

void run(const LifBackward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { backward<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
