// Launch settings: pure functions of sizes and addresses, and the one way to launch a kernel.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "ckd/params.h"

namespace ckd::cuda {

struct LaunchSize {
  unsigned blocks, threads;
  size_t shared_bytes;
};

inline constexpr int64_t kMaxBlocks = 2147483647;  // in x, on every device since compute capability 3.0
// Shared memory that every device gives a block without being asked.
inline constexpr size_t kSharedBytes = 48 * 1024;

// Blocks for `work` items, `per_block` each. More than a grid holds is more than any device's memory; such a launch
// is refused: with 0 blocks it has no valid size.
inline unsigned block_count(int64_t work, int64_t per_block) {
  const int64_t blocks = work / per_block + (work % per_block != 0);
  return blocks <= kMaxBlocks ? static_cast<unsigned>(blocks) : 0;
}

inline int64_t power_of_two_from(int64_t n) {
  int64_t power = 1;
  while (power < n) power *= 2;
  return power;
}

// Whether every address (null ones aside) allows 16-byte accesses.
inline bool aligned(std::initializer_list<const void*> addresses) {
  return std::all_of(addresses.begin(), addresses.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; });
}

inline LaunchSize forward_size(int64_t neurons, int width) {
  constexpr unsigned kThreads = 256;
  return {block_count(neurons, int64_t{kThreads} * width), kThreads, 0};
}

// Small blocks: with the registers that the backward pass takes, more threads fit on a multiprocessor.
inline constexpr unsigned kBackwardThreads = 128;

// The potentials of up to 16 steps lie in shared memory, 4 bytes a neuron and step.
inline LaunchSize backward_size(int64_t neurons, int width, int64_t steps) {
  const size_t per_thread = std::min<int64_t>(steps, kCheckpointEvery) * width * sizeof(float);
  unsigned threads = kBackwardThreads;
  while (threads * per_thread > kSharedBytes) threads /= 2;
  return {block_count(neurons, int64_t{threads} * width), threads, threads * per_thread};
}

struct LocationSize {
  int across, deep;
  int64_t tiles;  // side by side
  LaunchSize size;
};

// Channels outside the innermost dimension. Threads side by side make full memory transactions; where that leaves
// processors without a block, tiles get narrower (64 bytes at least) and then deeper.
inline LocationSize planar_size(int64_t planes, int64_t channels, int64_t inner, int width, int processors) {
  const int64_t vectors = (inner + width - 1) / width, wanted = int64_t{2} * processors;
  int64_t across = std::min<int64_t>(power_of_two_from(vectors), 32);
  const auto tiles = [&] { return (vectors + across - 1) / across; };
  const auto blocks = [&] { return planes * tiles(); };
  while (across * width > 16 && across > 4 && blocks() < wanted) across /= 2;
  const int64_t threads = blocks() < wanted ? 512 : 256;
  const int64_t deep = std::min(power_of_two_from(channels), std::max<int64_t>(threads / across, 1));
  const unsigned used = static_cast<unsigned>(across * deep);
  return {static_cast<int>(across),
          static_cast<int>(deep),
          tiles(),
          {block_count(blocks(), 1), used, used * width * sizeof(float)}};
}

// Channels innermost: up to a warp for each location.
inline LocationSize row_size(int64_t locations, int64_t channels, int width) {
  constexpr int kThreads = 256;
  const int deep = static_cast<int>(std::min<int64_t>(power_of_two_from((channels + width - 1) / width), 32));
  const int across = kThreads / deep;
  return {across, deep, 1, {block_count(locations, across), kThreads, 0}};
}

struct ChannelSize {
  int across, deep;
  int64_t tiles;  // side by side: channels, or runs of them
  int64_t slices, per_slice, sums_at;
  LaunchSize size;
};

// How channels are cut into blocks. inner > 1: `width` neighbours are of one channel; 1: of as many channels.
class ChannelTiles {
 public:
  ChannelTiles(int64_t planes, int64_t channels, int64_t inner, int width, unsigned threads)
      : planar_(inner > 1), width_(width), threads_(threads) {
    const int64_t vectors = channels / width;  // side by side, where channels are
    across_ = planar_ ? 1 : std::min<int64_t>(power_of_two_from(vectors), 32);
    deep_ = threads / across_;
    tiles_ = planar_ ? channels : (vectors + across_ - 1) / across_;
    work_ = planar_ ? planes * (inner / width) : planes;
  }

  // For sums over all but channels, two a channel: how many blocks share a channel is a function of sizes alone, so
  // that the order of additions is, too. The sums follow the shared memory that a kernel needs for itself.
  ChannelSize for_sums(size_t shared_bytes) const {
    constexpr int64_t kBlocks = 512;  // at most: what a large processor runs at once, and little to add up afterwards
    const int64_t useful = work_ / (2 * deep_), wanted = kBlocks / tiles_;
    const size_t sums = (planar_ ? 2 : 2 * width_) * threads_ * sizeof(double);
    return cut(std::max<int64_t>(1, std::min(useful, wanted)), shared_bytes, sums);
  }

  // For a pass that writes as much as it reads: a thread visits up to `most` vectors, as long as that leaves blocks for
  // all processors.
  ChannelSize for_pass(int most) const {
    constexpr int64_t kBlocks = 2048;
    const int64_t longest = most * deep_, wanted = std::max<int64_t>(1, kBlocks / tiles_);
    return cut(std::max((work_ + longest - 1) / longest, std::min(wanted, (work_ + deep_ - 1) / deep_)), 0, 0);
  }

 private:
  ChannelSize cut(int64_t slices, size_t shared_bytes, size_t sums) const {
    const int64_t per_slice = (work_ + slices - 1) / slices;
    slices = (work_ + per_slice - 1) / per_slice;
    return {static_cast<int>(across_),
            static_cast<int>(deep_),
            tiles_,
            slices,
            per_slice,
            static_cast<int64_t>(shared_bytes),
            {block_count(tiles_ * slices, 1), threads_, shared_bytes + sums}};
  }

  bool planar_;
  int width_;
  unsigned threads_;
  int64_t across_, deep_, tiles_, work_;
};

// Blocks that share the sum of one channel: a function of sizes alone, so that the order of additions is, too.
inline int sum_slices(int64_t terms, int64_t channels) {
  const int64_t useful = (terms + 4095) / 4096, affordable = std::max<int64_t>(1, 1024 / channels);
  return static_cast<int>(std::min(useful, affordable));
}

// Makes a device current for as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  cudaError_t status_;
  bool changed_ = false;
};

// Runs f with a device current.
template <class F>
int on_device(int device, F&& f) {
  const DeviceScope scope(device);
  return scope.status() != cudaSuccess ? scope.status() : f();
}

// Multiprocessors of the current device.
inline cudaError_t processor_count(int& count) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  return status != cudaSuccess ? status : cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}

// Calls f with a value of a storage type.
template <class F>
cudaError_t with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float());
    case DType::kBFloat16:
      return f(__nv_bfloat16());
    case DType::kFloat16:
      return f(__half());
    default:
      return cudaErrorInvalidValue;
  }
}

template <class Call>
cudaError_t launch(void (*kernel)(Call), const LaunchSize& size, void* stream, const Call& call) {
  void* arguments[] = {const_cast<Call*>(&call)};
  const cudaError_t status = cudaLaunchKernel(kernel, dim3(size.blocks), dim3(size.threads), arguments,
                                              size.shared_bytes, static_cast<cudaStream_t>(stream));
  if (status != cudaSuccess) cudaGetLastError();  // it was reported here; nobody else should find it
  return status;
}

// For which architecture the kernels that run on a device were compiled, as 90 for 9.0; 0: nobody has asked yet.
inline constexpr int kDevicesKnown = 64;  // more are asked every time
inline std::atomic<int> compiled_for[kDevicesKnown];

// Whether kernels have their wait_for_previous() on the current device. One of compute capability 9.0 or later runs
// others, too: those that its driver has translated from the PTX of an older architecture, where the wait is compiled
// out. All kernels are compiled for the same architectures: the first one that is asked speaks for all.
template <class Call>
cudaError_t kernels_wait(void (*kernel)(Call), bool& wait) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  int architecture = device < kDevicesKnown ? compiled_for[device].load(std::memory_order_relaxed) : 0;
  if (architecture == 0) {
    cudaFuncAttributes attributes{};
    status = cudaFuncGetAttributes(&attributes, kernel);
    if (status != cudaSuccess) {
      cudaGetLastError();  // it was reported here; nobody else should find it
      return status;
    }
    architecture = attributes.ptxVersion;  // a virtual architecture, as __CUDA_ARCH__, and not what the GPU is
    if (device < kDevicesKnown) compiled_for[device].store(architecture, std::memory_order_relaxed);
  }
  wait = architecture >= 90;
  return cudaSuccess;
}

// The same for a kernel that begins with wait_for_previous(): where it can, its blocks take their places while the last
// ones of the kernel before it are at work. Between kernels of a few microseconds that is much of the gap.
template <class Call>
cudaError_t launch_after(void (*kernel)(Call), const LaunchSize& size, void* stream, const Call& call) {
  bool wait = false;
  cudaError_t status = kernels_wait(kernel, wait);
  if (status != cudaSuccess) return status;
  if (!wait) return launch(kernel, size, stream, call);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(size.blocks);
  config.blockDim = dim3(size.threads);
  config.dynamicSmemBytes = size.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &early;
  config.numAttrs = 1;
  status = cudaLaunchKernelEx(&config, kernel, call);
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

}  // namespace ckd::cuda
