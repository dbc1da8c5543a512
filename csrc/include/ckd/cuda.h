// CUDA entry points. A status of 0 is success, any other one is a cudaError_t.
// Nothing here allocates or synchronises; the stream is a cudaStream_t of the device.
#pragma once
#include <cstdint>

#include "ckd/params.h"

namespace ckd::cuda {

int lif_forward(const LifForward& call, int device, void* stream);

// Bytes of device memory that a call needs beside its arguments, aligned to 8; 0: none, and `workspace` may be null.
int64_t lif_backward_workspace(const LifBackward& call);
int lif_backward(const LifBackward& call, void* workspace, int device, void* stream);

int64_t bn_statistics_workspace(const BatchStatistics& call);
int bn_statistics(const BatchStatistics& call, void* workspace, int device, void* stream);

int bn_fold(const BatchFold& call, int device, void* stream);
int bn_coefficients(const BatchCoefficients& call, int device, void* stream);

int sam(const SamForward& call, int device, void* stream);

int pack_bits(const PackBits& call, int device, void* stream);
int unpack_bits(const UnpackBits& call, int device, void* stream);

// Whether backward kernels are compiled for a neuron of a constant decay or tau, alone or behind normalisation. What a
// neuron is else looked up by kernels for all.
bool is_compiled_in(const Neuron& neuron, bool normalised);

// 0 where there is no device or no driver.
int device_count();
const char* error_string(int status);

}  // namespace ckd::cuda
