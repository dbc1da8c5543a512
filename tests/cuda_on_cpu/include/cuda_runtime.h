// What the kernels and launchers use of CUDA's runtime, for a C++ compiler.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline  // not forced: a third of the time to compile
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define ckd_dynamic_shared fiber_shared_memory

struct float2 {
  float x, y;
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = struct CUstream_st*;

// Two devices, so that a test sees which one is current during a launch and afterwards. The second one's kernels are
// translated from the PTX of 8.0.
struct FakeDevices {
  int current = 0, launched_on = -1, processors = 4, asked = 0;
  bool launched_early = false;
};
inline FakeDevices fake_devices;

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 2;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = fake_devices.current;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;
  fake_devices.current = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = fake_devices.processors;
  return cudaSuccess;
}
struct cudaFuncAttributes {
  int binaryVersion, ptxVersion;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  ++fake_devices.asked;
  *attributes = {90, fake_devices.current == 0 ? 90 : 80};
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "error"; }

template <class Call>
cudaError_t cudaLaunchKernel(void (*kernel)(Call), dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  fake_devices.launched_on = fake_devices.current;
  fake_devices.launched_early = false;
  const Call call = *static_cast<const Call*>(arguments[0]);
  return fibers::run_grid(grid, block, shared_bytes, [&] { kernel(call); }) ? cudaSuccess
                                                                            : cudaErrorInvalidConfiguration;
}

// A kernel that may begin before the one ahead of it has ended; here it never does.
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim = dim3(1), blockDim = dim3(1);
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <class Call>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Call), const Call& call) {
  void* arguments[] = {const_cast<Call*>(&call)};
  const cudaError_t status =
      cudaLaunchKernel(kernel, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, config->stream);
  fake_devices.launched_early = true;
  return status;
}

inline void __syncthreads() { fibers::Block::current().barrier(); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int apart) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  auto& block = fibers::Block::current();
  bits = block.shuffle(mask, (block.running() % fibers::kWarp) ^ apart, bits);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
