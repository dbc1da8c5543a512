// Both passes of a direction in one launch, compared bit by bit with a launch for each.
#pragma once
#include <cstdlib>
#include <string>

#include "ckd/cuda.h"
#include "guarded.h"

namespace at_once {

// What a direction writes.
template <class S>
struct Results {
  Guarded<float> folded, coefficients, v_last, sam, checkpoints, grad_v_init, grad_leak;
  Guarded<S> spikes, grad_x, grad_residual;
  std::string error;

  Results(const ckd::Shape& shape, int64_t leaks, bool misaligned)
      : folded(6 * shape.channels, misaligned),
        coefficients(4 * shape.channels, misaligned),
        v_last(shape.outer * shape.frame(), misaligned),
        sam(shape.outer * shape.rows * shape.inner, misaligned),
        checkpoints(ckd::checkpoint_count(shape.steps) * shape.outer * shape.frame(), misaligned),
        grad_v_init(shape.outer * shape.frame(), misaligned),
        grad_leak(leaks, misaligned),
        spikes(shape.outer * shape.steps * shape.frame(), misaligned),
        grad_x(shape.outer * (shape.repeated ? 1 : shape.steps) * shape.frame(), misaligned),
        grad_residual(shape.outer * shape.steps * shape.frame(), misaligned) {}

  // As the arguments' calls, with their own statistics and into these arrays.
  void run(const char* launches, ckd::LifForward f, ckd::LifBackward b, const float* weight, const float* bias) {
    setenv("CKD_BN_LAUNCHES", launches, 1);
    const int64_t channels = f.shape.channels;
    const auto into = [](auto*& pointer, auto& array) {
      if (pointer) pointer = array.data;
    };
    ckd::BatchStatistics statistics;
    statistics.shape = f.shape;
    statistics.dtype = f.dtype;
    statistics.y = f.x;
    ckd::BatchFold fold;
    fold.channels = channels;
    fold.weight = weight;
    fold.bias = bias;
    fold.running_mean = bias;
    fold.running_var = weight;
    fold.values = static_cast<double>(grad_x.size() / channels);
    fold.momentum = 0.1;
    fold.eps = 1e-5;
    fold.folded = folded.data;
    f.affine.scale = folded.data + 2 * channels;
    f.affine.shift = folded.data + 3 * channels;
    f.spikes = spikes.data;
    into(f.v_last, v_last);
    into(f.sam, sam);
    into(f.checkpoints, checkpoints);
    {
      Guarded<double> workspace(ckd::cuda::bn_lif_forward_workspace(statistics) / sizeof(double), false);
      const int status = ckd::cuda::bn_lif_forward(statistics, fold, f, workspace.data, 0, nullptr);
      if (status) error = "bn_lif_forward: status " + std::to_string(status);
      if (!workspace.intact()) error = "memory beside the workspace was written";
    }
    ckd::BatchCoefficients call;
    call.channels = channels;
    call.invstd = folded.data + channels;
    call.values = fold.values;
    call.coefficients = coefficients.data;
    b.affine = f.affine;
    b.mean = folded.data;
    b.offset = coefficients.data;
    b.slope = coefficients.data + channels;
    b.checkpoints = f.checkpoints;
    b.grad_x = grad_x.data;
    into(b.grad_residual, grad_residual);
    into(b.grad_v_init, grad_v_init);
    into(b.grad_leak, grad_leak);
    Guarded<double> workspace(ckd::cuda::bn_lif_backward_workspace(b) / sizeof(double), false);
    const int status = ckd::cuda::bn_lif_backward(call, b, workspace.data, 0, nullptr);
    if (status) error = "bn_lif_backward: status " + std::to_string(status);
    if (!workspace.intact()) error = "memory beside the workspace was written";
    unsetenv("CKD_BN_LAUNCHES");
  }

  std::string differs_from(const Results& other) const {
    std::string found = error.empty() ? other.error : error;
    const auto compare = [&](const char* what, const auto& mine, const auto& theirs) {
      const bool same = std::memcmp(mine.data, theirs.data, mine.size() * sizeof(mine[0])) == 0;
      if (!same && found.empty()) found = std::string(what) + " of one launch and of several differ";
      if (!(mine.intact() && theirs.intact()) && found.empty()) found = std::string("memory beside ") + what;
    };
    compare("folded", folded, other.folded);
    compare("coefficients", coefficients, other.coefficients);
    compare("v_last", v_last, other.v_last);
    compare("sam", sam, other.sam);
    compare("checkpoints", checkpoints, other.checkpoints);
    compare("grad_v_init", grad_v_init, other.grad_v_init);
    compare("grad_leak", grad_leak, other.grad_leak);
    compare("spikes", spikes, other.spikes);
    compare("grad_x", grad_x, other.grad_x);
    compare("grad_residual", grad_residual, other.grad_residual);
    return found;
  }
};

// Empty where all is well.
template <class S>
std::string compare(const ckd::LifForward& f, const ckd::LifBackward& b, const float* weight, const float* bias,
                    bool misaligned) {
  const int64_t leaks = f.leak_per_channel ? f.shape.channels : 1;
  Results<S> one(f.shape, leaks, misaligned), several(f.shape, leaks, misaligned);
  several.run("several", f, b, weight, bias);
  // Few blocks at once, so that each has several of the cut's.
  const int processors = fake_devices.processors;
  if (processors > 3) fake_devices.processors = 3;
  one.run("one", f, b, weight, bias);
  fake_devices.processors = processors;
  return one.differs_from(several);
}

}  // namespace at_once
