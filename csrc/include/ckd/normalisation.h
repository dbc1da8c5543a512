// Batch normalisation for one channel: what its statistics are folded into, and what its gradient's sums come to.
// Each operation is rounded once, in this order, on every backend.
#pragma once
#include <cmath>

#include "ckd/params.h"
#include "ckd/platform.h"

namespace ckd {

template <class Real>
CKD_FN void fold_channel(const BatchFold& call, int64_t c) {
  const auto row = [&](int i) { return static_cast<Real*>(call.folded) + i * call.channels + c; };
  const auto given = [&](const void* p, Real otherwise) { return p ? static_cast<const Real*>(p)[c] : otherwise; };
  const double var = call.moments[call.channels + c];
  const Real mean = Real(call.moments[c]), invstd = Real(1.0 / sqrt(var + call.eps));
  const Real scale = given(call.weight, Real(1)) * invstd, centre = mean * scale;
  *row(0) = mean;
  *row(1) = invstd;
  *row(2) = scale;
  *row(3) = given(call.bias, Real(0)) - centre;
  if (!call.running_mean) return;
  const double values = call.values * (call.count ? *call.count : 1.0);
  const Real unbiased = Real(var * (values / (values - 1.0)));
  const Real kept = Real(1.0 - call.momentum), share = Real(call.momentum);
  *row(4) = given(call.running_mean, Real(0)) * kept + mean * share;
  *row(5) = given(call.running_var, Real(0)) * kept + unbiased * share;
}

template <class Real>
CKD_FN void coefficients_of_channel(const BatchCoefficients& call, int64_t c) {
  const auto row = [&](int i) { return static_cast<Real*>(call.coefficients) + i * call.channels + c; };
  const double values = call.values * (call.count ? *call.count : 1.0);
  const double sum = call.sums[c], invstd = static_cast<const Real*>(call.invstd)[c];
  const double grad_weight = call.sums[call.channels + c] * invstd;
  *row(0) = Real(sum / values);
  *row(1) = Real(grad_weight * invstd / values);
  *row(2) = Real(grad_weight);
  *row(3) = Real(sum);
}

}  // namespace ckd
