// Multi-step neurons backward on a CPU, tile by tile.
#include <algorithm>
#include <memory>
#include <vector>

#include "ckd/cpu.h"
#include "fused.h"
#include "spans.h"
#include "tile.h"
#include "wide.h"

namespace ckd::cpu::CKD_ISA {
namespace {

// Which calls the fused steps serve.
bool is_fused(const LifBackward& call) {
  return call.grad_spikes && !call.grad_sam && !call.leak && !call.shape.repeated && !is_delayed(call.neuron);
}

// One tile's way back through time on the fused steps.
template <class S>
class FusedTile {
  using Raw = typename S::Raw;

 public:
  using Real = typename S::Real;
  explicit FusedTile(const LifBackward& call)
      : call_(call),
        at_(call.shape),
        fused_(call.neuron),
        recompute_(call.neuron),
        one_from_rest_(call.shape.steps == 1 && !call.v_init && !call.grad_v && !call.grad_v_init) {
    fill_row(fused_.leak, kTile, leak_);
  }

  void run(int64_t outer, int64_t begin, int64_t end, double*) {
    const int64_t n = end - begin, state = at_.state(outer, begin);
    if (one_from_rest_) return fused_.from_rest(fused_.k, fused_.back, fused_.leak, n, rows(outer, 0, begin, nullptr));
    load_state(call_.grad_v, state, Real(0), n, gv_);
    if (call_.grad_v) tame<S>(n, gv_);
    for (int64_t chunk = checkpoint_count(call_.shape.steps); chunk >= 0; --chunk) {
      const int64_t first = chunk * kCheckpointEvery;
      const int64_t last = std::min<int64_t>(call_.shape.steps, first + kCheckpointEvery);
      before_groups(chunk, first, last, outer, begin, n);
      in_groups_back(first, last, [&](int64_t t, auto group) {
        constexpr int G = decltype(group)::value;
        const Real* v = v_ + (t - first) / kGroup * kTile + (G == 1 && (t - first) % kGroup == 2 ? kTile : 0);
        fused_.steps.template get<G>()(fused_.k, fused_.back, fused_.leak, n, rows(outer, t, begin, v));
      });
    }
    if (call_.grad_v_init) std::memcpy(static_cast<Real*>(call_.grad_v_init) + state, gv_, n * sizeof(Real));
  }

 private:
  FusedRows<S> rows(int64_t outer, int64_t t, int64_t begin, const Real* v) {
    const int64_t at = at_.step(outer, t, begin);
    return {{static_cast<const Raw*>(call_.x) + at, at_.frame},
            {static_cast<const Raw*>(call_.grad_spikes) + at, at_.frame},
            {static_cast<Raw*>(call_.grad_x) + at, at_.frame},
            v,
            gv_};
  }

  // v before each group of the chunk [first, last), a row each.
  void before_groups(int64_t chunk, int64_t first, int64_t last, int64_t outer, int64_t begin, int64_t n) {
    const int64_t state = at_.state(outer, begin);
    const int64_t checkpoint = (chunk - 1) * call_.shape.outer * at_.frame + state;
    load_state(chunk == 0 ? call_.v_init : call_.checkpoints, chunk == 0 ? state : checkpoint, fused_.k.rest, n, v_);
    if (chunk > 0 || call_.v_init) tame<S>(n, v_);
    Real* v = v_;
    in_groups(first, last, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      if (t + G == last) return;
      recompute_.steps.template get<G>()(fused_.k, n, rows(outer, t, begin, nullptr).x, leak_, {v, v + kTile},
                                         {unused_, n});
      v += kTile;
    });
  }

  const LifBackward& call_;
  const Address at_;
  const FusedSteps<S> fused_;
  const RecomputeSteps<S> recompute_;
  const bool one_from_rest_;
  // Room for the groups of a chunk: 4 of 4 steps, or 3 and one of 2 and one of 1.
  alignas(64) Real v_[(kCheckpointEvery / kGroup + 1) * kTile];
  alignas(64) Real gv_[kTile], leak_[kTile], unused_[kGroup * kTile];
};

template <class Tile>
void tile_by_tile(const LifBackward& call, int threads) {
  using Real = typename Tile::Real;
  const int64_t tile_size = tile_for(call.shape.steps);
  const Cut cut(call.shape, tile_size);
  const int64_t values = call.leak_per_channel ? call.shape.channels : 1;
  std::vector<double> partial(call.grad_leak ? cut.parts() * values : 0, 0.0);
  cut.run(threads, [&] {
    return [&, tile = std::make_unique<Tile>(call)](const Span& span) {
      double* sums = call.grad_leak ? partial.data() + span.part * values : nullptr;
      for (int64_t begin = span.begin; begin < span.end; begin += tile_size) {
        tile->run(span.outer, begin, std::min(begin + tile_size, span.end), sums);
      }
    };
  });
  if (call.grad_leak) {
    for (int64_t c = 0; c < values; ++c) {
      double sum = 0;
      for (int64_t part = 0; part < cut.parts(); ++part) sum += partial[part * values + c];
      static_cast<Real*>(call.grad_leak)[c] = Real(sum);
    }
  }
}

template <class S>
void backward(const LifBackward& call, int threads) {
#ifdef CKD_FUSED
  if constexpr (std::is_same_v<S, Float32> || std::is_same_v<S, BFloat16>) {
    if (is_fused(call)) return tile_by_tile<FusedTile<S>>(call, threads);
  }
#endif
  tile_by_tile<WideTile<S>>(call, threads);
}

}  // namespace

void run(const LifBackward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { backward<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
