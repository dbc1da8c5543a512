// Multi-step neurons on a CPU: a tile of elements runs through all time steps while its state stays in L1.
#include <memory>

#include "ckd/cpu.h"
#include "rows.h"
#include "spans.h"
#include "steps.h"

namespace ckd::cpu::CKD_ISA {
namespace {

// Where a row of a tile lies in the tensors of a call.
struct Address {
  int64_t frame, steps, x_steps;
  explicit Address(const Shape& s) : frame(s.frame()), steps(s.steps), x_steps(s.repeated ? 1 : s.steps) {}
  int64_t state(int64_t outer, int64_t begin) const { return outer * frame + begin; }
  int64_t step(int64_t outer, int64_t t, int64_t begin) const { return (outer * steps + t) * frame + begin; }
  int64_t x(int64_t outer, int64_t t, int64_t begin) const {
    return (outer * x_steps + (x_steps == 1 ? 0 : t)) * frame + begin;
  }
};

template <class Real>
void load_leak(const Shape& shape, const Neuron& neuron, const void* leak, bool per_channel, int64_t begin, int64_t end,
               Real* row) {
  const Real* values = static_cast<const Real*>(leak);
  if (leak && per_channel) {
    spread_channels(shape, begin, end, values, row);
  } else {
    fill_row(leak ? *values : Real(neuron.leak), end - begin, row);
  }
}

template <class Real>
void load_state(const void* from, int64_t at, Real rest, int64_t n, Real* v) {
  if (from) {
    std::memcpy(v, static_cast<const Real*>(from) + at, n * sizeof(Real));
  } else {
    fill_row(rest, n, v);
  }
}

// A span of whole locations, about a tile long where rows are short.
int64_t whole_rows(const Shape& shape) {
  const int64_t row = shape.channels * shape.inner;
  return row * std::max<int64_t>(1, kTile / row);
}

template <class S>
void forward(const LifForward& call, int threads) {
  using Real = typename S::Real;
  using Raw = typename S::Raw;
  const Shape& shape = call.shape;
  const Address at(shape);
  const Constants<Real> k(call.neuron);
  const Steps<Real, Raw> steps(call.neuron);
  const Raw* x = static_cast<const Raw*>(call.x);
  Raw* spikes = static_cast<Raw*>(call.spikes);
  // Counts are integers until the end, in the memory of the map itself.
  uint32_t* map = reinterpret_cast<uint32_t*>(call.sam);

  Cut(shape, map ? whole_rows(shape) : kTile).run(threads, [&](const Span& span) {
    alignas(64) Real v[kTile], leak[kTile], converted[kTile];
    alignas(64) uint32_t count[kTile];
    uint32_t* span_map = map + span.outer * shape.rows * shape.inner;
    const int64_t row = shape.channels * shape.inner;
    const int64_t map_begin = span.begin / row * shape.inner, map_end = (span.end + row - 1) / row * shape.inner;
    if (map) std::fill(span_map + map_begin, span_map + map_end, 0u);

    for (int64_t begin = span.begin; begin < span.end; begin += kTile) {
      const int64_t end = std::min(begin + kTile, span.end), n = end - begin;
      load_leak(shape, call.neuron, call.leak, call.leak_per_channel, begin, end, leak);
      load_state(call.v_init, at.state(span.outer, begin), k.rest, n, v);
      if (map) std::fill(count, count + n, 0u);
      const Real* input = nullptr;
      for (int64_t t = 0; t < shape.steps; ++t) {
        if (t == 0 || !shape.repeated) input = as_real<S>(x + at.x(span.outer, t, begin), converted, n);
        Raw* out = spikes + at.step(span.outer, t, begin);
        steps.forward(k, S::kOne, n, input, leak, v, out);
        if (map) {
          CKD_SIMD
          for (int64_t i = 0; i < n; ++i) count[i] += out[i] ? 1u : 0u;
        }
        if (call.checkpoints && (t + 1) % kCheckpointEvery == 0 && t + 1 < shape.steps) {
          const int64_t chunk = (t + 1) / kCheckpointEvery - 1;
          Real* to = static_cast<Real*>(call.checkpoints) + chunk * shape.outer * at.frame;
          std::memcpy(to + at.state(span.outer, begin), v, n * sizeof(Real));
        }
      }
      if (call.v_last) {
        std::memcpy(static_cast<Real*>(call.v_last) + at.state(span.outer, begin), v, n * sizeof(Real));
      }
      if (map) gather_locations(shape, begin, end, count, span_map);
    }
    const float total = static_cast<float>(shape.steps * shape.channels);
    if (map) {
      for (int64_t i = map_begin; i < map_end; ++i)
        span_map[i] = bit_cast<uint32_t>(static_cast<float>(span_map[i]) / total);
    }
  });
}

// One tile's way back through time.
template <class S>
class BackwardTile {
  using Real = typename S::Real;
  using Raw = typename S::Raw;

 public:
  explicit BackwardTile(const LifBackward& call)
      : call_(call),
        shape_(call.shape),
        at_(call.shape),
        k_(call.neuron),
        steps_(call.neuron),
        delayed_(call.neuron.drop_later != 0 && !call.neuron.detach_reset),
        share_(Real(1.0 / static_cast<double>(call.shape.steps * call.shape.channels))) {}

  void run(int64_t outer, int64_t begin, int64_t end, double* leak_sums) {
    outer_ = outer;
    begin_ = begin;
    n_ = end - begin;
    load_leak(shape_, call_.neuron, call_.leak, call_.leak_per_channel, begin, end, leak_);
    keep();
    load_state(call_.grad_v, at_.state(outer, begin), Real(0), n_, gv_);
    if (call_.grad_sam) {
      spread_locations(shape_, begin, end, call_.grad_sam + outer * shape_.rows * shape_.inner, share_, from_sam_);
    }
    if (shape_.repeated) fill_row(Real(0), n_, gx_sum_);
    if (leak_sums) fill_row(Real(0), n_, leak_sum_);
    has_pending_ = false;
    for (int64_t chunk = checkpoint_count(shape_.steps); chunk >= 0; --chunk) {
      const int64_t first = chunk * kCheckpointEvery;
      recompute(first, std::min<int64_t>(shape_.steps, first + kCheckpointEvery));
      for (int64_t t = std::min<int64_t>(shape_.steps, first + kCheckpointEvery) - 1; t >= first; --t) {
        step(t, first, leak_sums != nullptr);
      }
    }
    finish(leak_sums);
  }

 private:
  // dL/dv[t-1] over gh[t].
  void keep() {
    if (call_.neuron.charge == Charge::kDecay) {
      std::memcpy(keep_, leak_, n_ * sizeof(Real));
    } else {
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) keep_[i] = Real(1) - Real(1) / leak_[i];
    }
  }

  const Real* input(int64_t t) {
    return as_real<S>(static_cast<const Raw*>(call_.x) + at_.x(outer_, t, begin_), converted_, n_);
  }

  void recompute(int64_t first, int64_t last) {
    const int64_t at = at_.state(outer_, begin_);
    if (first == 0) {
      load_state(call_.v_init, at, k_.rest, n_, start_);
    } else {
      const int64_t chunk = first / kCheckpointEvery - 1;
      load_state(call_.checkpoints, chunk * shape_.outer * at_.frame + at, k_.rest, n_, start_);
    }
    std::memcpy(v_, start_, n_ * sizeof(Real));
    const Real* x = nullptr;
    for (int64_t t = first; t < last; ++t) {
      if (t == first || !shape_.repeated) x = input(t);
      steps_.recompute(k_, n_, x, leak_, v_, h_[t - first]);
    }
  }

  // dL/ds[t], from all that the spikes of step t went into.
  const Real* grad_spikes(int64_t t) {
    const Real* gs = nullptr;
    if (call_.grad_spikes) {
      gs = as_real<S>(static_cast<const Raw*>(call_.grad_spikes) + at_.step(outer_, t, begin_), gs_, n_);
    }
    if (call_.grad_sam) {
      if (gs) {
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gs_[i] = gs[i] + from_sam_[i];
        gs = gs_;
      } else {
        gs = from_sam_;
      }
    }
    if (!gs) {
      fill_row(Real(0), n_, gs_);
      gs = gs_;
    }
    if (has_pending_) {
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) gs_[i] = gs[i] - pending_[i];
      gs = gs_;
    }
    return gs;
  }

  void step(int64_t t, int64_t first, bool leak_wanted) {
    const Real* h = h_[t - first];
    steps_.surrogate(k_, n_, h, sg_);
    const bool divides = call_.neuron.charge == Charge::kLeakInput;
    Raw* out = static_cast<Raw*>(call_.grad_x) + at_.x(outer_, t, begin_);
    // Without a conversion gh is grad_x, written in place.
    Real* gh = kIsReal<S> && !divides && !shape_.repeated ? reinterpret_cast<Real*>(out) : gh_;
    steps_.backward(k_, n_, h, sg_, grad_spikes(t), keep_, gv_, gh);
    if (delayed_) {
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) pending_[i] = gh[i] * k_.drop_later;
      has_pending_ = true;
    }
    if (leak_wanted) {
      const Real* before = start_;
      if (t > first) {
        steps_.reset(k_, n_, h_[t - first - 1], v_);
        before = v_;
      }
      steps_.leak(k_, n_, gh, before, input(t), leak_, leak_sum_);
    }
    if (divides) {
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) gh_[i] = gh_[i] / leak_[i];
    }
    if (shape_.repeated) {
      CKD_SIMD
      for (int64_t i = 0; i < n_; ++i) gx_sum_[i] += gh_[i];
    } else if (gh == gh_) {
      S::store(gh_, out, n_);
    }
  }

  void finish(double* leak_sums) {
    if (shape_.repeated) S::store(gx_sum_, static_cast<Raw*>(call_.grad_x) + at_.x(outer_, 0, begin_), n_);
    if (call_.grad_v_init) {
      if (has_pending_) {
        steps_.surrogate(k_, n_, start_, sg_);
        CKD_SIMD
        for (int64_t i = 0; i < n_; ++i) gv_[i] = gv_[i] - pending_[i] * sg_[i];
      }
      Real* to = static_cast<Real*>(call_.grad_v_init) + at_.state(outer_, begin_);
      std::memcpy(to, gv_, n_ * sizeof(Real));
    }
    if (!leak_sums) return;
    if (call_.leak_per_channel) {
      gather_channels(shape_, begin_, begin_ + n_, leak_sum_, leak_sums);
    } else {
      for (int64_t i = 0; i < n_; ++i) *leak_sums += leak_sum_[i];
    }
  }

  const LifBackward& call_;
  const Shape& shape_;
  const Address at_;
  const Constants<Real> k_;
  const Steps<Real, Raw> steps_;
  const bool delayed_;  // a spike's gradient comes from the next step's potential, too
  const Real share_;
  int64_t outer_ = 0, begin_ = 0, n_ = 0;
  bool has_pending_ = false;
  alignas(64) Real h_[kCheckpointEvery][kTile];
  alignas(64) Real v_[kTile], start_[kTile], leak_[kTile], keep_[kTile], converted_[kTile], sg_[kTile], gs_[kTile];
  alignas(64) Real gv_[kTile], gh_[kTile], from_sam_[kTile], pending_[kTile], gx_sum_[kTile], leak_sum_[kTile];
};

template <class S>
void backward(const LifBackward& call, int threads) {
  using Real = typename S::Real;
  const Cut cut(call.shape, kTile);
  const int64_t values = call.leak_per_channel ? call.shape.channels : 1;
  std::vector<double> partial(call.grad_leak ? cut.parts() * values : 0, 0.0);
  cut.run(threads, [&](const Span& span) {
    BackwardTile<S> tile(call);
    double* sums = call.grad_leak ? partial.data() + span.part * values : nullptr;
    for (int64_t begin = span.begin; begin < span.end; begin += kTile) {
      tile.run(span.outer, begin, std::min(begin + kTile, span.end), sums);
    }
  });
  if (call.grad_leak) {
    for (int64_t c = 0; c < values; ++c) {
      double sum = 0;
      for (int64_t part = 0; part < cut.parts(); ++part) sum += partial[part * values + c];
      static_cast<Real*>(call.grad_leak)[c] = Real(sum);
    }
  }
}

}  // namespace

void run(const LifForward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { forward<decltype(s)>(call, threads); });
}

void run(const LifBackward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { backward<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
