// One call of the CUDA entry points, forward and backward, compared with the plain loop.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>

#include "ckd/cuda.h"
#include "plain_loop.h"

struct Case {
  plain::Definition neuron;
  ckd::Shape shape;
  ckd::DType dtype = ckd::DType::kFloat32;
  enum class Leak { kConstant, kOne, kPerChannel } leak = Leak::kConstant;
  bool v_init = false, v_last = true, sam = false;
  bool grad_spikes = true, grad_v = false, grad_sam = false, grad_v_init = false, grad_leak = false;
  bool misaligned = false;  // every tensor begins beside a 16-byte boundary
  bool extremes = false;    // x has infinities and NaN
  // Behind batch normalisation, whose gradient goes through the statistics or not.
  bool normalised = false, residual = false, grad_residual = false, through_statistics = false;
  unsigned seed = 1;

  std::string name() const {
    std::ostringstream text;
    text << "dtype " << int(dtype) << " shape [" << shape.outer << "," << shape.steps << "," << shape.rows << ","
         << shape.channels << "," << shape.inner << "]" << (shape.repeated ? " repeated" : "") << " charge "
         << int(neuron.charge) << " reset " << int(neuron.reset) << " surrogate " << int(neuron.surrogate)
         << (neuron.strict ? " strict" : "") << (neuron.detach ? " detached" : "") << " leak " << int(leak)
         << (v_init ? " v_init" : "") << (sam ? " sam" : "") << (grad_spikes ? " gs" : "") << (grad_v ? " gv" : "")
         << (normalised ? " normalised" : "") << (residual ? " residual" : "") << (grad_residual ? " gresidual" : "")
         << (through_statistics ? " through statistics" : "") << (grad_sam ? " gsam" : "")
         << (grad_leak ? " gleak" : "") << (misaligned ? " misaligned" : "");
    return text.str();
  }
};

// An array that is filled with NaN bits, between two strips that must stay as they are.
template <class T>
class Guarded {
  static constexpr size_t kStrip = 64;
  static constexpr unsigned char kMark = 0xA5;
  size_t size_, offset_;
  unsigned char* memory_;
  size_t bytes() const { return size_ * sizeof(T); }

 public:
  T* data;
  Guarded(size_t size, bool misaligned) : size_(size), offset_(kStrip + (misaligned ? sizeof(T) : 0)) {
    memory_ = static_cast<unsigned char*>(std::aligned_alloc(64, (bytes() + 3 * kStrip) / 64 * 64 + 64));
    std::memset(memory_, kMark, bytes() + 2 * kStrip);
    std::memset(memory_ + offset_, 0xFF, bytes());
    data = reinterpret_cast<T*>(memory_ + offset_);
    ASAN_POISON_MEMORY_REGION(memory_, offset_ / 8 * 8);
    ASAN_POISON_MEMORY_REGION(memory_ + offset_ + bytes(), kStrip - 16);
  }
  ~Guarded() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, bytes() + 2 * kStrip);
    std::free(memory_);
  }
  Guarded(const Guarded&) = delete;
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data[i]; }
  bool intact() const {
    ASAN_UNPOISON_MEMORY_REGION(memory_, bytes() + 2 * kStrip);
    for (size_t i = 0; i < offset_; ++i)
      if (memory_[i] != kMark) return false;
    for (size_t i = offset_ + bytes(); i < offset_ + bytes() + kStrip - 16; ++i)
      if (memory_[i] != kMark) return false;
    return true;
  }
};

inline bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <class S>
class Comparison {
  const Case& c;
  const ckd::Shape& shape;
  const int64_t frame, neurons, total;
  std::mt19937 random;
  std::string error;
  const Guarded<S> residual, g_residual;
  const Guarded<float> scale, shift, mean, offset, slope;
  const Guarded<double> sums;
  std::vector<double> variance, wanted, sizes;  // sums as they should be, and sums of magnitudes

  // Quarters reach the threshold exactly.
  template <class T>
  void draw(const Guarded<T>& values, float mean, float scale) {
    std::normal_distribution<float> normal(mean, scale);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = T(random() % 3 ? normal(random) : 0.25f * static_cast<float>(static_cast<int>(random() % 9) - 4));
    }
  }
  template <class T>
  static T* given(const Guarded<T>& values, bool wanted) {
    return wanted ? values.data : nullptr;
  }
  void expect(bool fine, const std::string& what, int64_t i, float got, float want) {
    if (fine || !error.empty()) return;
    std::ostringstream text;
    text << what << "[" << i << "] is " << got << ", should be " << want;
    error = text.str();
  }
  // Exact without a transcendental function, else within a few units in the last place, of the terms' size also.
  bool close(float got, float want, float size = 1.0f) const {
    if (same(got, want)) return true;
    if (!c.neuron.exponential()) return false;
    const float unit = std::is_same_v<S, float> ? 2e-6f : std::is_same_v<S, __half> ? 2e-3f : 1.6e-2f;
    return std::fabs(got - want) <= unit * (std::fmax(size, 1.0f) + std::fabs(want));
  }

 public:
  explicit Comparison(const Case& c)
      : c(c),
        shape(c.shape),
        frame(shape.frame()),
        neurons(shape.outer * frame),
        total(neurons * shape.steps),
        random(c.seed),
        residual(c.residual ? total : 0, c.misaligned),
        g_residual(c.grad_residual ? total : 0, c.misaligned),
        scale(shape.channels, c.misaligned),
        shift(shape.channels, c.misaligned),
        mean(shape.channels, c.misaligned),
        offset(shape.channels, c.misaligned),
        slope(shape.channels, c.misaligned),
        sums(2 * shape.channels, false),
        variance(shape.channels),
        wanted(2 * shape.channels, 0.0),
        sizes(2 * shape.channels, 0.0) {}

  // Empty where all is well.
  std::string run() {
    const int64_t frames = shape.repeated ? 1 : shape.steps, locations = shape.outer * shape.rows * shape.inner;
    const bool per_channel = c.leak == Case::Leak::kPerChannel;
    const int64_t leaks = per_channel ? shape.channels : 1, chunks = ckd::checkpoint_count(shape.steps);
    Guarded<S> x(neurons * frames, c.misaligned), gs(total, c.misaligned);
    draw(x, 0.3f, 0.8f);
    draw(gs, 0.0f, 1.0f);
    if (c.extremes) {
      for (int64_t i = 0; i < neurons; i += 3) x[i] = S(i % 2 ? INFINITY : i % 4 ? -INFINITY : NAN);
    }
    Guarded<float> v_init(neurons, c.misaligned), gv(neurons, c.misaligned), gsam(locations, c.misaligned);
    draw(v_init, 0.0f, 0.7f);
    draw(gv, 0.0f, 1.0f);
    draw(gsam, 0.0f, 1.0f);
    Guarded<float> leak(leaks, c.misaligned);
    if (c.normalised) normalise(x);
    for (int64_t i = 0; i < leaks; ++i) leak[i] = c.neuron.leak * (1.0f + 0.1f * float(i % 7));
    Guarded<S> spikes(total, c.misaligned), gx(neurons * frames, c.misaligned);
    Guarded<float> v_last(neurons, c.misaligned), sam(locations, c.misaligned), gv_init(neurons, c.misaligned);
    Guarded<float> checkpoints(chunks * neurons, c.misaligned), g_leak(leaks, c.misaligned);

    ckd::LifForward f;
    f.neuron = c.neuron.call();
    f.shape = shape;
    f.dtype = c.dtype;
    f.x = x.data;
    f.v_init = given(v_init, c.v_init);
    f.leak = given(leak, c.leak != Case::Leak::kConstant);
    f.leak_per_channel = per_channel;
    f.spikes = spikes.data;
    f.v_last = given(v_last, c.v_last);
    f.sam = given(sam, c.sam);
    f.checkpoints = given(checkpoints, chunks > 0);
    f.affine.scale = given(scale, c.normalised);
    f.affine.shift = given(shift, c.normalised);
    f.affine.residual = given(residual, c.residual);
    if (const int status = ckd::cuda::lif_forward(f, 0, nullptr))
      return "lif_forward: status " + std::to_string(status);

    ckd::LifBackward b;
    b.neuron = f.neuron;
    b.shape = shape;
    b.dtype = c.dtype;
    b.x = x.data;
    b.v_init = f.v_init;
    b.leak = f.leak;
    b.leak_per_channel = per_channel;
    b.checkpoints = f.checkpoints;
    b.grad_spikes = given(gs, c.grad_spikes);
    b.grad_v = given(gv, c.grad_v);
    b.grad_sam = given(gsam, c.grad_sam);
    b.grad_x = gx.data;
    b.grad_v_init = given(gv_init, c.grad_v_init);
    b.grad_leak = given(g_leak, c.grad_leak);
    b.affine = f.affine;
    if (c.normalised) reduce(b);
    b.mean = given(mean, c.through_statistics);
    b.offset = given(offset, c.through_statistics);
    b.slope = given(slope, c.through_statistics);
    b.grad_residual = given(g_residual, c.grad_residual);
    Guarded<double> workspace(ckd::cuda::lif_backward_workspace(b) / sizeof(double), false);
    if (const int status = ckd::cuda::lif_backward(b, workspace.data, 0, nullptr)) {
      return "lif_backward: status " + std::to_string(status);
    }

    std::vector<int64_t> counts(locations, 0);
    std::vector<double> leak_sums(leaks, 0.0), leak_sizes(leaks, 0.0);
    const float share = static_cast<float>(1.0 / static_cast<double>(shape.steps * shape.channels));
    for (int64_t n = 0; n < neurons; ++n) {
      const int64_t outer = n / frame, at = n % frame, channel = at / shape.inner % shape.channels;
      const int64_t location =
          (outer * shape.rows + at / (shape.inner * shape.channels)) * shape.inner + at % shape.inner;
      std::vector<float> input(shape.steps), spike_gradients(shape.steps);
      for (int64_t t = 0; t < shape.steps; ++t) {
        const int64_t i = (outer * shape.steps + t) * frame + at;
        input[t] = static_cast<float>(x[shape.repeated ? n : i]);
        if (c.normalised) input[t] = input[t] * scale[channel] + shift[channel];
        if (c.residual) input[t] = input[t] + static_cast<float>(residual[i]);
        const float gradient = c.grad_spikes ? static_cast<float>(gs[i]) : 0.0f;
        spike_gradients[t] = c.grad_sam ? gradient + gsam[location] * share : gradient;
      }
      const float own_leak = c.leak == Case::Leak::kConstant ? c.neuron.leak : leak[per_channel ? channel : 0];
      plain::Trace trace(c.neuron, f.neuron, own_leak, c.v_init ? v_init[n] : c.neuron.rest(), input);
      trace.backward(spike_gradients, c.grad_v ? gv[n] : 0.0f);

      float summed = 0, product = 0, size = 0, product_size = 0;
      for (int64_t t = shape.steps; t-- > 0;) {
        const int64_t i = (outer * shape.steps + t) * frame + at;
        const float spike = static_cast<float>(spikes[i]);
        expect(spike == (trace.spikes[t] ? 1.0f : 0.0f), "spikes", i, spike, trace.spikes[t]);
        counts[location] += trace.spikes[t];
        summed += trace.grad_x[t];
        size += std::fabs(trace.grad_x[t]);
        if (c.normalised) {
          const float term = trace.grad_x[t] * (float(x[shape.repeated ? n : i]) - mean[channel]);
          product += term;
          product_size += std::fabs(term);
        }
        if (c.grad_residual) {
          const float got = static_cast<float>(g_residual[i]), want = static_cast<float>(S(trace.grad_x[t]));
          expect(close(got, want), "grad_residual", i, got, want);
        }
        if (!shape.repeated) expect_gradient(x, gx, i, channel, trace.grad_x[t], 1.0f);
      }
      if (shape.repeated) expect_gradient(x, gx, n, channel, summed, size);
      if (c.normalised) {
        if (shape.repeated) product = summed * (float(x[n]) - mean[channel]);
        wanted[channel] += summed;
        sizes[channel] += size;
        wanted[shape.channels + channel] += product;
        sizes[shape.channels + channel] += product_size;
      }
      if (c.v_last) expect(same(v_last[n], trace.after.back()), "v_last", n, v_last[n], trace.after.back());
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float want = trace.after[(chunk + 1) * ckd::kCheckpointEvery - 1], got = checkpoints[chunk * neurons + n];
        expect(same(got, want), "checkpoints", chunk * neurons + n, got, want);
      }
      if (c.grad_v_init) expect(close(gv_init[n], trace.grad_v_init), "grad_v_init", n, gv_init[n], trace.grad_v_init);
      leak_sums[per_channel ? channel : 0] += trace.grad_leak;
      leak_sizes[per_channel ? channel : 0] += std::fabs(trace.grad_leak);
    }
    for (int64_t i = 0; c.sam && i < locations; ++i) {
      const float want = static_cast<float>(counts[i]) / static_cast<float>(shape.steps * shape.channels);
      expect(sam[i] == want, "sam", i, sam[i], want);
    }
    for (int64_t i = 0; c.grad_leak && i < leaks; ++i) {
      const float want = static_cast<float>(leak_sums[i]);
      // Both add the same float terms up; the kernels add some twenty of them, one after the other, in float.
      const double allowed = c.neuron.exponential() ? 2e-6 * leak_sizes[i] : 1.2e-7 * std::fabs(want);
      expect(std::fabs(g_leak[i] - want) <= allowed, "grad_leak", i, g_leak[i], want);
    }
    if (c.sam) compare_sam(spikes, counts);
    if (c.normalised) compare_sums();
    for (bool intact :
         {x.intact(),          gs.intact(),          v_init.intact(), gv.intact(),        gsam.intact(),
          leak.intact(),       spikes.intact(),      gx.intact(),     v_last.intact(),    sam.intact(),
          gv_init.intact(),    checkpoints.intact(), g_leak.intact(), workspace.intact(), residual.intact(),
          g_residual.intact(), scale.intact(),       shift.intact(),  mean.intact(),      offset.intact(),
          slope.intact(),      sums.intact()}) {
      if (!intact && error.empty()) error = "memory beside a tensor was written";
    }
    return error;
  }

 private:
  // Draws a normalisation from the statistics of y, which are checked.
  void normalise(const Guarded<S>& y) {
    const int64_t count = static_cast<int64_t>(y.size()) / shape.channels;
    Guarded<double> moments(2 * shape.channels, false);
    ckd::BatchStatistics call;
    call.shape = shape;
    call.dtype = c.dtype;
    call.y = y.data;
    call.moments = moments.data;
    Guarded<double> workspace(ckd::cuda::bn_statistics_workspace(call) / sizeof(double), false);
    const int status = ckd::cuda::bn_statistics(call, workspace.data, 0, nullptr);
    if (status && error.empty()) error = "bn_statistics: status " + std::to_string(status);
    std::vector<double> total(shape.channels, 0.0), squares(shape.channels, 0.0);
    const auto channel_of = [&](size_t i) { return static_cast<int64_t>(i) / shape.inner % shape.channels; };
    for (size_t i = 0; i < y.size(); ++i) total[channel_of(i)] += static_cast<float>(y[i]);
    for (size_t i = 0; i < y.size(); ++i) {
      const double deviation = static_cast<float>(y[i]) - total[channel_of(i)] / count;
      squares[channel_of(i)] += deviation * deviation;
    }
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      const double m = total[channel] / count, v = squares[channel] / count;
      const double allowed = sizeof(S) == 4 ? 1e-12 : 1e-6;  // of 2-byte types a few terms are added in float
      expect(std::fabs(moments[channel] - m) <= allowed * (1 + std::fabs(m)), "mean", channel, moments[channel], m);
      const double got = moments[shape.channels + channel];
      expect(std::fabs(got - v) <= allowed * (1 + v), "variance", channel, got, v);
      variance[channel] = v;
      mean[channel] = static_cast<float>(m);
      scale[channel] = static_cast<float>((0.6 + 0.1 * (channel % 5)) / std::sqrt(v + 1e-5));
      shift[channel] = 0.4f - mean[channel] * scale[channel];
    }
    if (!(moments.intact() && workspace.intact()) && error.empty()) error = "memory beside the moments was written";
    draw(residual, 0.1f, 0.5f);
  }

  // The first pass back; what follows from it is given to the second one.
  void reduce(ckd::LifBackward call) {
    call.grad_x = call.grad_v_init = call.grad_leak = nullptr;
    call.mean = mean.data;
    call.sums = sums.data;
    Guarded<double> workspace(ckd::cuda::lif_backward_workspace(call) / sizeof(double), false);
    const int status = ckd::cuda::lif_backward(call, workspace.data, 0, nullptr);
    if (status && error.empty()) error = "reduce: status " + std::to_string(status);
    if (!workspace.intact() && error.empty()) error = "memory beside the partial sums was written";
    const double count = static_cast<double>(neurons * (shape.repeated ? 1 : shape.steps) / shape.channels);
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      offset[channel] = static_cast<float>(sums[channel] / count);
      slope[channel] = static_cast<float>(sums[shape.channels + channel] / (variance[channel] + 1e-5) / count);
    }
  }

  void expect_gradient(const Guarded<S>& x, const Guarded<S>& gx, int64_t i, int64_t channel, float gradient,
                       float size) {
    if (c.through_statistics) {
      gradient = (gradient - offset[channel]) - (float(x[i]) - mean[channel]) * slope[channel];
    }
    if (c.normalised) gradient = gradient * scale[channel];
    const float got = static_cast<float>(gx[i]), want = static_cast<float>(S(gradient));
    expect(close(got, want, size * (c.normalised ? scale[channel] : 1.0f)), "grad_x", i, got, want);
  }

  // Both add the same float terms up; the kernels add some twenty of them, one after the other, in float.
  void compare_sums() {
    for (size_t i = 0; i < wanted.size(); ++i) {
      const double allowed = (c.neuron.exponential() ? 5e-6 : 1.5e-6) * (sizes[i] + 1e-3);
      expect(std::fabs(sums[i] - wanted[i]) <= allowed, "sums", static_cast<int64_t>(i), sums[i], wanted[i]);
    }
  }

  // The map of the same spikes, by the op of its own.
  void compare_sam(const Guarded<S>& spikes, const std::vector<int64_t>& counts) {
    Guarded<float> map(counts.size(), c.misaligned);
    ckd::SamForward call;
    call.shape = shape;
    call.shape.repeated = false;
    call.dtype = c.dtype;
    call.spikes = spikes.data;
    call.sam = map.data;
    const int status = ckd::cuda::sam(call, 0, nullptr);
    if (status && error.empty()) error = "sam: status " + std::to_string(status);
    for (size_t i = 0; i < counts.size(); ++i) {
      const float want = static_cast<float>(counts[i]) / static_cast<float>(shape.steps * shape.channels);
      expect(map[i] == want, "sam op", static_cast<int64_t>(i), map[i], want);
    }
    if (!map.intact() && error.empty()) error = "memory beside the map was written";
  }
};

inline std::string run(const Case& c) {
  switch (c.dtype) {
    case ckd::DType::kFloat32:
      return Comparison<float>(c).run();
    case ckd::DType::kBFloat16:
      return Comparison<__nv_bfloat16>(c).run();
    default:
      return Comparison<__half>(c).run();
  }
}
