// The neuron equations as a plain loop over time for one neuron, in float, written from their definition and sharing
// nothing with the kernels: what they are compared with.
#pragma once
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "ckd/params.h"

namespace plain {

enum class Charge { kDecay, kLeak, kLeakInput, kIntegrate };
enum class Reset { kHard, kSoft, kSoftDelayed, kNone };

// A neuron as its user describes it.
struct Definition {
  Charge charge = Charge::kDecay;
  Reset reset = Reset::kHard;
  bool strict = false, detach = false;
  float leak = 0.5f, threshold = 1.0f, v_reset = 0.0f;  // leak: decay or tau
  ckd::SurrogateKind surrogate = ckd::SurrogateKind::kTriangle;
  double alpha = 1.0;

  float rest() const { return reset == Reset::kHard ? v_reset : 0.0f; }
  bool fires(float h) const { return strict ? h > threshold : h >= threshold; }
  bool delayed_gradient() const { return reset == Reset::kSoftDelayed && !detach; }
  bool exponential() const {
    using K = ckd::SurrogateKind;
    return surrogate == K::kSigmoid || surrogate == K::kPiecewiseExp || surrogate == K::kErf;
  }

  // What the kernels are given for it.
  ckd::Neuron call() const {
    ckd::Neuron n;
    n.charge = charge == Charge::kLeak        ? ckd::Charge::kLeak
               : charge == Charge::kLeakInput ? ckd::Charge::kLeakInput
                                              : ckd::Charge::kDecay;
    n.reset = reset == Reset::kHard ? ckd::Reset::kHard : ckd::Reset::kSubtract;
    n.detach_reset = detach;
    n.surrogate = surrogate;
    n.leak = charge == Charge::kIntegrate ? 1.0 : leak;
    n.threshold = threshold;
    n.fire_level = strict ? std::nextafter(threshold, std::numeric_limits<float>::infinity()) : threshold;
    n.rest = rest();
    n.drop_now = reset == Reset::kSoft ? threshold : 0.0;
    n.drop_later = reset == Reset::kSoftDelayed ? threshold : 0.0;
    using K = ckd::SurrogateKind;
    const double a = alpha, pi = std::numbers::pi;
    switch (surrogate) {
      case K::kSigmoid:
        n.c0 = a;
        break;
      case K::kATan:
        n.c0 = a / 2, n.c1 = pi / 2 * a;
        break;
      case K::kTriangle:
        n.c0 = a, n.c1 = a * a;
        break;
      case K::kRectangle:
        n.c0 = a, n.c1 = 0.5 / a;
        break;
      case K::kPiecewiseExp:
        n.c0 = a / 2, n.c1 = a;
        break;
      case K::kSoftSign:
        n.c0 = 1 / a, n.c1 = 2 * a;
        break;
      case K::kFastSigmoid:
        n.c0 = a;
        break;
      case K::kSuperSpike:
        n.c0 = a;
        break;
      case K::kErf:
        n.c0 = a / std::sqrt(pi), n.c1 = a;
        break;
    }
    return n;
  }

  float derivative(float u, const ckd::Neuron& n) const {
    using K = ckd::SurrogateKind;
    const float c0 = static_cast<float>(n.c0), c1 = static_cast<float>(n.c1), size = std::fabs(u);
    switch (surrogate) {
      case K::kSigmoid: {
        const float e = std::exp(-c0 * size);
        return c0 * e / ((1.0f + e) * (1.0f + e));
      }
      case K::kATan:
        return c0 / (1.0f + (c1 * u) * (c1 * u));
      case K::kTriangle: {
        const float height = c0 - c1 * size;
        return height < 0 ? 0.0f : height;
      }
      case K::kRectangle:
        return size < c1 ? c0 : 0.0f;
      case K::kPiecewiseExp:
        return c0 * std::exp(-c1 * size);
      case K::kSoftSign:
        return 1.0f / (c1 * ((c0 + size) * (c0 + size)));
      case K::kFastSigmoid:
        return 1.0f / ((c0 * size + 1.0f) * (c0 * size + 1.0f));
      case K::kSuperSpike:
        return c0 / ((1.0f + size) * (1.0f + size));
      case K::kErf:
        return c0 * std::exp(-(c1 * u) * (c1 * u));
    }
    return std::numeric_limits<float>::quiet_NaN();
  }
};

// One neuron through time, forward on construction.
class Trace {
 public:
  std::vector<float> before, h, after;  // v[t-1], h[t], v[t]
  std::vector<char> spikes;

  // constants: d.call()
  Trace(const Definition& d, const ckd::Neuron& constants, float leak, float v, const std::vector<float>& x)
      : d_(d), constants_(constants), leak_(leak), x_(x) {
    for (float input : x) {
      before.push_back(v);
      float potential = 0;
      switch (d.charge) {
        case Charge::kDecay:
          potential = v * leak + input;
          break;
        case Charge::kLeak:
          potential = v - (v - d.rest()) / leak + input;
          break;
        case Charge::kLeakInput:
          potential = v + (input - (v - d.rest())) / leak;
          break;
        case Charge::kIntegrate:
          potential = v + input;
          break;
      }
      if (d.reset == Reset::kSoftDelayed && d.fires(v)) potential = potential - d.threshold;
      const bool fires = d.fires(potential);
      v = potential;
      if (d.reset == Reset::kHard && fires) v = d.v_reset;
      if (d.reset == Reset::kSoft && fires) v = v - d.threshold;
      h.push_back(potential);
      spikes.push_back(fires);
      after.push_back(v);
    }
  }

  std::vector<float> grad_x;
  float grad_v_init = 0, grad_leak = 0;

  // gs: dL/ds[t] without the part that comes from a delayed reset.
  void backward(const std::vector<float>& gs, float gv) {
    grad_x.assign(x_.size(), 0.0f);
    float later = 0;
    bool has_later = false;
    for (size_t t = x_.size(); t-- > 0;) {
      const float sg = d_.derivative(h[t] - d_.threshold, constants_);
      const float spike_gradient = has_later ? gs[t] - later : gs[t];
      float through = 1.0f;
      if (d_.reset == Reset::kHard) {
        through = 1.0f - (spikes[t] ? 1.0f : 0.0f);
        if (!d_.detach) through = through + (d_.v_reset - h[t]) * sg;
      }
      if (d_.reset == Reset::kSoft && !d_.detach) through = 1.0f - d_.threshold * sg;
      const float gh = spike_gradient * sg + gv * through;
      if (d_.delayed_gradient()) {
        later = gh * d_.threshold;
        has_later = true;
      }
      grad_x[t] = gh;
      switch (d_.charge) {
        case Charge::kDecay:
          grad_leak += gh * before[t];
          gv = gh * leak_;
          break;
        case Charge::kLeak:
          grad_leak += gh * ((before[t] - d_.rest()) / (leak_ * leak_));
          gv = gh * (1.0f - 1.0f / leak_);
          break;
        case Charge::kLeakInput:
          grad_leak += gh * (((before[t] - d_.rest()) - x_[t]) / (leak_ * leak_));
          gv = gh * (1.0f - 1.0f / leak_);
          grad_x[t] = gh / leak_;
          break;
        case Charge::kIntegrate:
          gv = gh;
          break;
      }
    }
    grad_v_init = has_later ? gv - later * d_.derivative(before[0] - d_.threshold, constants_) : gv;
  }

 private:
  const Definition& d_;
  const ckd::Neuron& constants_;
  const float leak_;
  const std::vector<float>& x_;
};

}  // namespace plain
