// What the driver says of devices and errors.
#include <cuda_runtime.h>

#include "ckd/cuda.h"

namespace ckd::cuda {

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

const char* error_string(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

}  // namespace ckd::cuda
