// What differs between a C++ compiler and nvcc.
#pragma once

#ifdef __CUDACC__
#define CKD_FN __host__ __device__ __forceinline__
#else
#define CKD_FN inline __attribute__((always_inline))
#endif
