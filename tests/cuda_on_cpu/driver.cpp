// Runs the CUDA kernels on fibers. `driver SECTION...` runs those sections, and ends with 1 where one fails:
//   options   every charge, reset, strictness, detachment and surrogate, float32
//   layouts   sizes, time steps, types and optional tensors, drawn at random; once in each order of threads
//   bn        the same behind batch normalisation
//   pack      spikes as bits and back
//   float32, bn_float32   the float32 part of these, briefly
//   launch    launch settings, devices, status codes
//   divisions what replaces a division on a GPU
//   fibers    that the fibers notice a kernel's mistakes
//   overflow  a kernel that leaves its shared memory: AddressSanitizer must end the program
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>

#include "case.h"
#include "extent.cuh"
#include "launch.h"
#include "pack_case.h"

namespace {

int failures = 0;

void report(const std::string& what, const std::string& error) {
  if (error.empty()) return;
  std::printf("FAIL %s: %s\n", what.c_str(), error.c_str());
  if (++failures == 10 || fibers::mutant() >= 0) std::exit(1);
}

void check(bool fine, const char* what) { report(what, fine ? "" : "does not hold"); }
#define CHECK(condition) check(condition, #condition)

template <class AnyCase>
void compare(const AnyCase& c) {
  std::string error = run(c);
  auto& seen = fibers::settings().errors;
  if (error.empty() && !seen.empty()) error = seen.front();
  seen.clear();
  report(c.name(), error);
}

void options() {
  for (int charge = 0; charge < 4; ++charge)
    for (int reset = 0; reset < 4; ++reset)
      for (int bits = 0; bits < 4; ++bits)
        for (int surrogate = 0; surrogate < 9; ++surrogate) {
          Case c;
          c.neuron.charge = plain::Charge(charge);
          c.neuron.reset = plain::Reset(reset);
          c.neuron.strict = bits & 1;
          c.neuron.detach = bits & 2;
          c.neuron.surrogate = ckd::SurrogateKind(surrogate);
          c.neuron.alpha = 0.7 + 0.4 * surrogate;
          // A tau that is a power of two has arithmetic of its own.
          c.neuron.leak = charge == 0 ? 0.5f : surrogate % 2 ? 2.0f : 1.7f;
          c.neuron.v_reset = reset == 0 ? -0.25f : 0.0f;
          c.shape = {1, 4, 1, 3, 4, false};
          c.v_init = c.grad_v = c.grad_v_init = true;
          // The general kernel of the backward pass, too.
          c.grad_leak = surrogate % 4 == 2 && charge != 3;
          c.leak = c.grad_leak ? Case::Leak::kOne : Case::Leak::kConstant;
          c.extremes = bits == 3 && !c.grad_leak;
          c.seed = 1 + surrogate;
          compare(c);
        }
}

std::mt19937 random_numbers(7);
int64_t one_of(std::initializer_list<int64_t> values) { return values.begin()[random_numbers() % values.size()]; }
bool coin() { return random_numbers() % 2 == 0; }

// One of the neurons that kernels are compiled for.
plain::Definition draw_compiled_neuron() {
  plain::Definition neuron;
  neuron.strict = coin();
  if (coin()) {  // the paper's, whose constants have arithmetic of their own
    if (random_numbers() % 4 == 0) neuron.leak = 0.6f;
    return neuron;
  }
  neuron.charge = plain::Charge::kLeakInput;
  neuron.leak = 2.0f;
  neuron.surrogate = coin() ? ckd::SurrogateKind::kSigmoid : ckd::SurrogateKind::kATan;
  neuron.detach = coin();
  return neuron;
}

// A call drawn at random, the i-th.
Case draw_case(int i, bool float32_only) {
  Case c;
  c.dtype = float32_only ? ckd::DType::kFloat32 : ckd::DType(i / 3 % 3);
  c.neuron.charge = plain::Charge(random_numbers() % 4);
  c.neuron.reset = plain::Reset(random_numbers() % 4);
  c.neuron.strict = coin();
  c.neuron.detach = coin();
  c.neuron.surrogate = ckd::SurrogateKind(random_numbers() % 9);
  c.neuron.leak = c.neuron.charge == plain::Charge::kDecay ? 0.6f : 2.0f;
  c.shape.outer = one_of({1, 1, 2, 3});
  c.shape.steps = one_of({1, 2, 3, 4, 16, 17, 40});
  c.shape.rows = one_of({1, 2, 5});
  // Channels innermost, or inner sizes that are and are not a multiple of an access.
  c.shape.inner = one_of({1, 1, 8, 16, 7, 49});
  c.shape.channels = one_of({1, 3, 8, 24, 33});
  if (i % 10 == 0) c.shape.channels = 8 * one_of({17, 40}), c.shape.inner = one_of({1, 16});
  // Short, where there is much of it.
  if (c.shape.outer * c.shape.rows * c.shape.channels * c.shape.inner > 2000) c.shape.outer = c.shape.rows = 1;
  if (c.shape.channels * c.shape.inner > 600) c.shape.steps = one_of({1, 3, 4, 17});
  c.shape.repeated = random_numbers() % 4 == 0;
  c.leak = c.neuron.charge == plain::Charge::kIntegrate ? Case::Leak::kConstant : Case::Leak(random_numbers() % 3);
  c.v_init = coin();
  c.v_last = coin();
  c.sam = coin();
  c.grad_spikes = random_numbers() % 4 != 0;
  c.grad_v = coin();
  c.grad_sam = coin();
  c.grad_v_init = coin();
  c.grad_leak = c.leak != Case::Leak::kConstant && coin();
  c.misaligned = random_numbers() % 5 == 0;
  c.extremes = random_numbers() % 8 == 0 && !c.grad_leak;
  c.seed = 100 + i;
  return c;
}

void compare_in_some_order(const Case& c, int i) {
  auto& settings = fibers::settings();
  settings.order = fibers::Order(i % 3);
  settings.seed = i;
  fake_devices.processors = static_cast<int>(one_of({1, 4, 132}));
  compare(c);
  settings.order = fibers::Order::kForward;
}

void layouts(bool float32_only) {
  random_numbers.seed(7);
  for (int i = 0; i < (float32_only ? 45 : 90); ++i) {
    Case c = draw_case(i, float32_only);
    if (i % 4 == 1) {
      c.neuron = draw_compiled_neuron();
      if (coin()) {  // those without normalisation
        c.neuron.charge = plain::Charge(random_numbers() % 4);
        c.neuron.reset = plain::Reset(random_numbers() % 4);
        c.neuron.surrogate = i % 8 == 1 ? ckd::SurrogateKind::kATan : ckd::SurrogateKind::kFastSigmoid;
        c.neuron.leak = c.neuron.charge == plain::Charge::kDecay ? 0.9f : 2.0f;
        c.neuron.detach = coin();
      }
      c.leak = Case::Leak::kConstant;
      c.grad_leak = c.shape.repeated = false;
      if (coin()) c.shape.steps = one_of({1, 2, 4, 17});
    }
    compare_in_some_order(c, i);
  }
}

void normalised(bool float32_only) {
  random_numbers.seed(11);
  for (int i = 0; i < (float32_only ? 45 : 120); ++i) {
    Case c = draw_case(i, float32_only);
    c.extremes = false;
    c.normalised = true;
    c.residual = coin();
    c.grad_residual = c.residual && coin();
    c.through_statistics = coin();
    if (i % 3 == 1) {  // the neuron, the steps and the calls that have kernels of their own
      c.neuron = draw_compiled_neuron();
      if (i % 2) c.leak = Case::Leak::kConstant, c.v_init = c.v_last = c.grad_v = c.grad_v_init = false;
      c.shape.steps = one_of({1, 2, 3, 4});
      c.grad_spikes = true;
      c.shape.repeated = c.grad_leak = c.misaligned = false;
      if (coin()) c.shape.inner = one_of({1, 8, 16}), c.shape.channels = one_of({8, 24});
    }
    // Several slices of a channel.
    if (i % 15 == 7) c.shape = {2, 4, 9, one_of({1, 4}), one_of({1, 256}), false};
    // So many that a block adds them up.
    if (i == 6) c.shape = {1, 1, 530, 1, 256, false}, c.leak = Case::Leak::kConstant, c.sam = false;
    compare_in_some_order(c, i);
  }
}

void pack() {
  int number = 0;
  // Around a byte, a vector of either type, and a block of either type.
  for (int64_t count : {1, 4, 7, 8, 9, 31, 4095, 4096, 4097, 4100, 8191, 8192, 8193, 20011})
    for (int dtype = 0; dtype < 3; ++dtype)
      for (bool misaligned : {false, true}) {
        fibers::settings().order = fibers::Order(++number % 3);
        compare(PackCase{ckd::DType(dtype), count, misaligned, 100u + number});
      }
  fibers::settings().order = fibers::Order::kForward;
  PackCase wrong;
  wrong.dtype = ckd::DType::kFloat64;
  CHECK(run_pack<double>(wrong) == "pack_bits: status " + std::to_string(cudaErrorInvalidValue));
}

struct Nothing {};
void no_kernel(Nothing) {}

// Early only where the kernels wait for the ones before them, which is found out once a device.
void early_launches() {
  using namespace ckd::cuda;
  const LaunchSize size{1, 32, 0};
  for (int device : {0, 1, 0, 1}) {
    const DeviceScope scope(device);
    CHECK(launch_after(no_kernel, size, nullptr, Nothing{}) == cudaSuccess);
    CHECK(fake_devices.launched_on == device && fake_devices.launched_early == (device == 0));
  }
  CHECK(fake_devices.asked == 2);
}

void launch() {
  using namespace ckd::cuda;
  early_launches();
  CHECK(block_count(256, 256) == 1 && block_count(257, 256) == 2);
  CHECK(block_count(2147483647, 1) == 2147483647u && block_count(2147483648, 1) == 0);
  CHECK(!aligned({nullptr, reinterpret_cast<const void*>(32), reinterpret_cast<const void*>(36)}));
  CHECK(aligned({nullptr, reinterpret_cast<const void*>(32)}));
  for (int64_t neurons : {int64_t{1}, int64_t{1000}, int64_t{1} << 33, int64_t{1} << 36}) {
    for (int width : {1, 4, 8}) {
      const LaunchSize forward = forward_size(neurons, width);
      CHECK(int64_t{forward.blocks} * forward.threads * width >= neurons && forward.threads % 32 == 0);
      for (int64_t steps : {1, 4, 16, 17, 1000}) {
        const LaunchSize size = backward_size(neurons, width, steps);
        CHECK(size.threads >= 64 && size.threads <= 128);
        CHECK(size.shared_bytes == size.threads * size_t(std::min<int64_t>(steps, 16)) * width * sizeof(float));
        CHECK(size.shared_bytes <= kSharedBytes);
        CHECK(int64_t{size.blocks} * size.threads * width >= neurons);
      }
    }
  }
  for (int64_t planes : {int64_t{1}, int64_t{64}, int64_t{1} << 30})
    for (int64_t channels : {1, 3, 64, 2048})
      for (int64_t inner : {2, 49, 64, 1 << 20})
        for (int width : {1, 4, 8}) {
          const LocationSize planar = planar_size(planes, channels, inner, width, 132),
                             row = row_size(planes, channels, width);
          CHECK(planar.across * planar.deep == static_cast<int>(planar.size.threads));
          CHECK(planar.size.threads <= 512 && planar.size.shared_bytes <= kSharedBytes);
          CHECK(planar.size.shared_bytes == planar.size.threads * size_t(width) * 4);
          CHECK(row.deep <= 32 && 32 % row.deep == 0 && row.across * row.deep == static_cast<int>(row.size.threads));
        }
  for (int64_t planes : {int64_t{1}, int64_t{100}, int64_t{1} << 33})
    for (int64_t channels : {1, 3, 8, 64, 512, 100000})
      for (int64_t inner : {1, 8, 1024})
        for (int width : {1, 4}) {
          if ((inner == 1 ? channels : inner) % width != 0) continue;
          const ChannelTiles tiles(planes, channels, inner, width, 256);
          const int64_t work = inner == 1 ? planes : planes * (inner / width);
          const ChannelSize sums = tiles.for_sums(112), pass = tiles.for_pass(8);
          const int64_t side_by_side = inner == 1 ? (channels / width + sums.across - 1) / sums.across : channels;
          for (const ChannelSize& cut : {sums, pass}) {
            CHECK(cut.across * cut.deep == 256 && cut.slices * cut.per_slice >= work);
            CHECK((cut.slices - 1) * cut.per_slice < work && cut.tiles == side_by_side);
            CHECK(cut.size.shared_bytes <= kSharedBytes);
          }
          CHECK(sums.size.blocks == side_by_side * sums.slices &&
                sums.size.blocks <= std::max<int64_t>(side_by_side, 512));
          CHECK(pass.per_slice <= 8 * pass.deep);
        }
  for (int64_t channels : {1, 512, 100000})
    for (int64_t terms : {int64_t{1}, int64_t{1} << 20, int64_t{1} << 40}) {
      const int64_t slices = sum_slices(terms, channels);
      CHECK(slices >= 1 && slices <= 1024 && slices * 4096 <= terms + 4095);
    }
  constexpr int64_t kSmall = int64_t{1} << 31;
  for (int64_t d : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{64}, int64_t{641}, int64_t{1000003},
                    kSmall - 1, kSmall, kSmall + 1, 4 * kSmall}) {
    const Divider divider(d);
    for (int64_t n : {int64_t{0}, int64_t{7}, d - 1, d, 2 * d - 1, kSmall / d * d - 1, kSmall / d * d, kSmall - 1,
                      kSmall, 2 * kSmall - 1, 2 * kSmall, (int64_t{1} << 45) + 11}) {
      if (n < 0) continue;
      const Parts parts = divider.split(n);
      CHECK(parts.quotient == n / d && parts.remainder == n % d);
    }
  }
  const ckd::Shape shape{3, 70000, 200, 300, 400, false};
  const Extent extent(shape);
  CHECK(extent.place(2 * shape.frame() + 5).sequence == 2 * 70000 * shape.frame() + 5);

  Guarded<float> x(4, false), spikes(4, false);
  x[0] = x[1] = x[2] = x[3] = 2.0f;
  ckd::LifForward call;
  call.neuron = plain::Definition().call();
  call.shape.inner = 4;
  call.x = x.data;
  call.spikes = spikes.data;
  CHECK(ckd::cuda::lif_forward(call, 1, nullptr) == 0 && spikes[3] == 1.0f);
  CHECK(fake_devices.launched_on == 1 && fake_devices.current == 0);
  CHECK(ckd::cuda::lif_forward(call, 7, nullptr) == cudaErrorInvalidDevice && fake_devices.current == 0);
  call.dtype = ckd::DType::kFloat64;
  CHECK(ckd::cuda::lif_forward(call, 0, nullptr) == cudaErrorInvalidValue);
  CHECK(ckd::cuda::device_count() == 2);
}

// A division of its own, from an inverse that is right or a unit in the last place off.
void divisions() {
  std::mt19937 random(3);
  for (int i = 0; i < 200000; ++i) {
    const float n =
        std::ldexp(1.0f + static_cast<float>(random() % (1 << 23)) * 0x1p-23f, static_cast<int>(random() % 101) - 97);
    const float edge = i % 3 == 0 ? std::ldexp(1.0f, i / 3 % 3) : 0.0f;
    const float near = std::nextafter(edge, i % 2 ? 2.5f : edge);
    const float d = edge > 0 ? near : 1.0f + static_cast<float>(random() % 0x600000) * 0x1p-21f;
    for (float inverse : {1.0f / d, std::nextafter(1.0f / d, 0.0f), std::nextafter(1.0f / d, 2.0f)}) {
      if (ckd::quotient(n, d, inverse) != n / d) return report("quotient", std::to_string(n) + "/" + std::to_string(d));
    }
  }
  CHECK(ckd::quotient(0.0f, 2.0f, 0.5f) == 0.0f && std::isnan(ckd::quotient(NAN, NAN, NAN)));
}

std::string error_of(const std::function<void()>& body) {
  auto& errors = fibers::settings().errors;
  errors.clear();
  fibers::run_grid(dim3(1), dim3(64), 1024, body);
  const std::string first = errors.empty() ? "" : errors.front();
  errors.clear();
  return first;
}

void fibers_notice() {
  CHECK(error_of([] { __syncthreads(); }).empty());
  CHECK(error_of([] { __shfl_xor_sync(~0u, 1, 16); }).empty());
  CHECK(!error_of([] {
           if (threadIdx.x < 40) __syncthreads();
         }).empty());
  CHECK(!error_of([] {
           if (threadIdx.x % 2) __shfl_xor_sync(~0u, 1, 1);
         }).empty());
  CHECK(!error_of([] { __shfl_xor_sync(0xFFFFu, 1, 16); }).empty());
  CHECK(!error_of([] {
           if (threadIdx.x != 5)
             __shfl_xor_sync(~0u, 1, 1);
           else
             __syncthreads();
         }).empty());
  CHECK(!fibers::run_grid(dim3(1), dim3(2048), 0, [] {}));
  CHECK(!fibers::run_grid(dim3(1), dim3(32), 64 * 1024, [] {}));
}

void overflow() {
  fibers::run_grid(dim3(1), dim3(32), 128, [] { ckd_dynamic_shared[128 + threadIdx.x] = 0; });
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<void()>> sections{{"options", options},
                                                              {"layouts", [] { layouts(false); }},
                                                              {"bn", [] { normalised(false); }},
                                                              {"float32", [] { layouts(true); }},
                                                              {"bn_float32", [] { normalised(true); }},
                                                              {"pack", pack},
                                                              {"launch", launch},
                                                              {"divisions", divisions},
                                                              {"fibers", fibers_notice},
                                                              {"overflow", overflow}};
  for (int i = 1; i < argc; ++i) {
    const auto section = sections.find(argv[i]);
    if (section == sections.end()) {
      std::printf("no section '%s'\n", argv[i]);
      return 2;
    }
    section->second();
  }
  std::printf("%d failures, %zu threads run\n", failures, fibers::settings().threads_run);
  return failures != 0;
}
