// The way back of a tile of bfloat16 whose rows are read and written in place, in pairs: nothing but the steps touches
// them.
#pragma once
#include "cpu/loop/backward_pairs.h"
#include "cpu/tile/grad_spikes.h"
#include "cpu/tile/output.h"

namespace ckd::cpu::CKD_ISA {

class PairTile {
 public:
  using Real = float;

  // Which of the calls that the fused steps serve.
  static bool serves(const LifBackward& call) {
    return is_usual(call.neuron) && call.grad_spikes && !call.affine.scale && !call.shape.repeated &&
           (!call.grad_sam || is_whole(call));
  }

  PairTile(const LifBackward& call, int64_t length)
      : call_(call),
        at_(call.shape),
        whole_(is_whole(call)),
        back_(call.neuron, !whole_         ? Part::kOfMany
                           : call.grad_sam ? Part::kWholeWithMap
                                           : Part::kWhole),
        advance_(call.neuron),
        scratch_(length, kRows + Upstream<BFloat16>::kRows + Output<uint16_t>::kRows),
        upstream_(call, kNoReach, scratch_),
        // Bound by arithmetic: no lines are asked for.
        output_(at_.elements() * static_cast<int64_t>(sizeof(uint16_t)), 0, scratch_),
        row_(scratch_.rows(1)),
        rest_(halves(1)),
        leak_(halves(1)),
        start_(halves(1)),
        v_(halves(kGroups)),
        gv_(halves(1)) {
    fill_row(back_.k.rest, scratch_.stride(), rest_.first);
    if (!call.leak_per_channel) fill_leak(call, scratch_.stride(), leak_.first);
  }

  void run(int64_t outer, int64_t begin, int64_t end, double*) {
    const int64_t n = end - begin, state = at_.state(outer, begin), steps = call_.shape.steps;
    if (call_.grad_sam) upstream_.start(outer, begin, end);
    if (!whole_) start_state(begin, end, state);
    for (int64_t chunk = checkpoint_count(steps); chunk >= 0; --chunk) {
      const int64_t first = chunk * kCheckpointEvery, last = std::min<int64_t>(steps, first + kCheckpointEvery);
      const Halves<const float> start = chunk_start(chunk, state, n);
      before_groups(start, outer, begin, first, last, n);
      in_groups_back(first, last, [&](int64_t t, auto group) {
        constexpr int G = decltype(group)::value;
        const int64_t place = (t - first) / kGroup + (G == 1 && (t - first) % kGroup == 2 ? 1 : 0);
        const Rows<uint16_t> to{static_cast<uint16_t*>(call_.grad_x) + at_.step(outer, t, begin), at_.frame};
        back_.steps.template get<G>()(
            back_.k, n,
            {rows(call_.x, outer, t, begin), rows(call_.grad_spikes, outer, t, begin), output_.rows(to, 0, G, n),
             float(call_.neuron.leak), upstream_.from_sam(), leak_, place == 0 ? start : before(place), gv_});
        output_.send(to, G, n);
      });
    }
    if (call_.grad_v_init) join_row(gv_, n, static_cast<float*>(call_.grad_v_init) + state);
  }

  // Bound by arithmetic, which a longer row lets run on.
  static int64_t length(const LifBackward&) { return 1024; }

 private:
  // Room for v before every group of a chunk but the first: 3 of 4 steps, or 2 and one of 2 and one of 1.
  static constexpr int64_t kGroups = kCheckpointEvery / kGroup;
  static constexpr int64_t kRows = 5 + kGroups;

  // Whether one call of the steps is the whole way back, and nothing comes from or goes to before the first one.
  static bool is_whole(const LifBackward& call) {
    return is_one_group(call.shape.steps) && !call.v_init && !call.leak && !call.grad_v && !call.grad_v_init;
  }

  Halves<float> halves(int64_t rows) { return {scratch_.rows(rows), scratch_.stride() / 2}; }
  Halves<float> before(int64_t place) const { return {v_.first + (place - 1) * scratch_.stride(), v_.half}; }

  Rows<const uint16_t> rows(const void* from, int64_t outer, int64_t t, int64_t begin) const {
    return {static_cast<const uint16_t*>(from) + at_.step(outer, t, begin), at_.frame};
  }

  void start_state(int64_t begin, int64_t end, int64_t state) {
    if (call_.leak_per_channel) {
      spread_channels(call_.shape, begin, end, static_cast<const float*>(call_.leak), row_);
      split_row(row_, end - begin, leak_);
    }
    if (call_.grad_v) {
      split_row(static_cast<const float*>(call_.grad_v) + state, end - begin, gv_);
    } else {
      fill_row(0.0f, scratch_.stride(), gv_.first);
    }
  }

  // v before the first step of a chunk.
  Halves<const float> chunk_start(int64_t chunk, int64_t state, int64_t n) {
    if (chunk == 0 && !call_.v_init) return rest_;
    const auto* from = static_cast<const float*>(chunk == 0 ? call_.v_init : call_.checkpoints);
    if (chunk > 0) from += (chunk - 1) * call_.shape.outer * at_.frame;
    split_row(from + state, n, start_);
    return start_;
  }

  // v before each further group of the chunk [first, last), a row each.
  void before_groups(Halves<const float> start, int64_t outer, int64_t begin, int64_t first, int64_t last, int64_t n) {
    int64_t place = 0;
    in_groups(first, last, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      if (t + G == last) return;
      advance_.steps.template get<G>()(back_.k, n, rows(call_.x, outer, t, begin),
                                       {leak_, place == 0 ? start : before(place), before(place + 1)}, {}, nullptr);
      ++place;
    });
  }

  const LifBackward& call_;
  const Address at_;
  const bool whole_;
  const FusedPairs back_;
  const AdvancePairs advance_;
  Scratch<float> scratch_;
  Upstream<BFloat16> upstream_;
  const Output<uint16_t> output_;
  float* row_;
  const Halves<float> rest_, leak_, start_, v_, gv_;
};

}  // namespace ckd::cpu::CKD_ISA
