// The way back of a tile on the fused steps.
#pragma once
#include "cpu/loop/backward.h"
#include "cpu/loop/backward_bn.h"
#include "cpu/tile/grad_input.h"
#include "cpu/tile/grad_spikes.h"
#include "cpu/tile/input.h"

namespace ckd::cpu::CKD_ISA {

// Which calls the fused steps serve.
inline bool is_fused(const LifBackward& call) { return !call.grad_leak && !is_delayed(call.neuron); }

template <class S>
class FusedTile {
  using Raw = typename S::Raw;

 public:
  using Real = float;
  FusedTile(const LifBackward& call, int64_t length)
      : call_(call),
        at_(call.shape),
        // Many steps are gone through twice: what the first time asked for would be asked for in vain the second time.
        reach_(call.shape.steps > kGroup && !kConverts<S> && !call.affine.scale ? kNoReach
                                                                                : reach_for(call.shape.steps, true)),
        fused_(call.neuron),
        fused_bn_(call),
        advance_(call.neuron),
        whole_(fused_bn_.four && !kConverts<S> && call.shape.steps == kGroup && !call.grad_v),
        pairs_(std::is_same_v<S, BFloat16> && whole_ && !call.v_init && !call.leak && !call.grad_v_init),
        has_blocks_(whole_ && has_channel_blocks(call.shape)),
        scratch_(length, kRows + Input<S, Float32>::kRows + Upstream<S>::kRows + GradInput<S>::kRows),
        input_(call, reach_, has_blocks_, scratch_),
        upstream_(call, reach_, scratch_),
        grad_input_(call, reach_, input_.scale(), has_blocks_, scratch_),
        rest_(scratch_.rows(1)),
        zeros_(scratch_.rows(1)),
        v_(scratch_.rows(kGroups)),
        gv_(scratch_.rows(1)),
        leak_(scratch_.rows(1)) {
    if (!call.leak_per_channel) fill_leak(call, length, leak_);
    fill_row(fused_.k.rest, length, rest_);
    fill_row(Real(0), length, zeros_);
  }

  void run(int64_t outer, int64_t begin, int64_t end, double* sums) {
    const int64_t n = end - begin, state = at_.state(outer, begin);
    input_.start(outer, begin, end);
    upstream_.start(outer, begin, end);
    grad_input_.start(outer, begin, end, !whole_);
    if (call_.leak_per_channel) {
      spread_channels(call_.shape, begin, end, static_cast<const Real*>(call_.leak), leak_);
    }
    if (!whole_) load_state(call_.grad_v, state, Real(0), n, gv_);
    for (int64_t chunk = checkpoint_count(call_.shape.steps); chunk >= 0; --chunk) {
      const int64_t first = chunk * kCheckpointEvery;
      const int64_t last = std::min<int64_t>(call_.shape.steps, first + kCheckpointEvery);
      const Real* start = chunk_start(chunk, state);
      before_groups(start, first, last, n);
      in_groups_back(first, last, [&](int64_t t, auto group) {
        constexpr int G = decltype(group)::value;
        const int64_t place = (t - first) / kGroup + (G == 1 && (t - first) % kGroup == 2 ? 1 : 0);
        const Real* v = place == 0 ? start : v_ + (place - 1) * scratch_.stride();
        if constexpr (G == kGroup && !kConverts<S>) {
          if (fused_bn_.four) {
            const FusedBnRows<S> rows = bn_rows(outer, t, begin, v);
            if (std::is_same_v<S, BFloat16> && pairs_ && n % 2 == 0) {
              if constexpr (std::is_same_v<S, BFloat16>) {
                fused_bn_.pairs(fused_.k, n, float(call_.neuron.leak), rows);
              }
            } else {
              fused_bn_.four(fused_.k, n, rows);
            }
            return grad_input_.template send<G>(t);
          }
        }
        in_blocks(n, reach_.block / sizeof(Raw), [&](int64_t at, int64_t length) {
          const auto gx = grad_input_.template rows<G>(t, at, length);
          fused_.steps.template get<G>()(fused_.k, length,
                                         {floats(input_.template rows<G>(t, at, length)),
                                          upstream_.template rows<G>(t, at, length), gx, leak_ + at, v + at, gv_ + at});
          grad_input_.template take<G>(t, at, length, {gx.first, gx.stride});
        });
        grad_input_.template send<G>(t);
      });
    }
    if (call_.grad_v_init) std::memcpy(static_cast<Real*>(call_.grad_v_init) + state, gv_, n * sizeof(Real));
    grad_input_.finish(sums);
  }

  static int64_t length(const LifBackward& call) {
    if (!kConverts<S> && call.affine.scale && call.shape.steps == kGroup) return 512;
    return tile_for(call.shape.steps, kConverts<S> || call.affine.scale);
  }

 private:
  // Room for v before every group of a chunk but the first: 3 of 4 steps, or 2 and one of 2 and one of 1.
  static constexpr int64_t kGroups = kCheckpointEvery / kGroup;
  static constexpr int64_t kRows = 2 + kGroups + 2;

  static Rows<const float> floats(Rows<const Float32::Raw> rows) {
    return {reinterpret_cast<const float*>(rows.first), rows.stride};
  }

  FusedBnRows<S> bn_rows(int64_t outer, int64_t t, int64_t begin, const Real* v) const {
    const int64_t at = at_.step(outer, t, begin);
    const auto in = [&](const void* rows) {
      return Rows<const Raw>{rows ? static_cast<const Raw*>(rows) + at : nullptr, at_.frame};
    };
    const auto carry = [&](Real* row) { return State<Real>{whole_ ? zeros_ : row, row}; };
    // The steps themselves ask for what lies ahead, hence rows of no elements.
    const auto& x_output = grad_input_.x_output();
    const auto& residual_output = grad_input_.residual_output();
    return {in(call_.x),
            in(call_.affine.residual),
            in(call_.grad_spikes),
            input_.shift(),
            grad_input_.terms(),
            leak_,
            v,
            carry(gv_),
            carry(grad_input_.sum()),
            carry(grad_input_.moment()),
            x_output.rows(grad_input_.x_place(t), 0, kGroup, 0),
            residual_output.rows(grad_input_.residual_place(t), 0, kGroup, 0),
            has_blocks_,
            reach_.to_read > 0,
            x_output.asks()};
  }

  // v before the first step of a chunk.
  const Real* chunk_start(int64_t chunk, int64_t state) const {
    if (chunk > 0) {
      return static_cast<const Real*>(call_.checkpoints) + (chunk - 1) * call_.shape.outer * at_.frame + state;
    }
    return call_.v_init ? static_cast<const Real*>(call_.v_init) + state : rest_;
  }

  // v before each further group of the chunk [first, last), a row each.
  void before_groups(const Real* start, int64_t first, int64_t last, int64_t n) {
    const Real* before = start;
    Real* after = v_;
    in_groups(first, last, [&](int64_t t, auto group) {
      constexpr int G = decltype(group)::value;
      if (t + G == last) return;
      advance_.steps.template get<G>()(fused_.k, n, input_.template rows<G>(t, 0, n), leak_, {before, after});
      before = after;
      after += scratch_.stride();
    });
  }

  const LifBackward& call_;
  const Address at_;
  const Reach reach_;
  const FusedSteps fused_;
  const FusedBnSteps<typename InLoop<S>::type> fused_bn_;
  const AdvanceSteps<Float32> advance_;
  // Whether one call of the steps behind a normalisation is the whole way back: nothing comes from later steps.
  const bool whole_;
  // Whether it may go in pairs: neither does anything come from or go to before the first step.
  const bool pairs_;
  // Whether the steps behind a normalisation are given its values for blocks.
  const bool has_blocks_;
  Scratch<Real> scratch_;
  Input<S, Float32> input_;
  Upstream<S> upstream_;
  GradInput<S> grad_input_;
  Real *rest_, *zeros_, *v_, *gv_, *leak_;
};

}  // namespace ckd::cpu::CKD_ISA
