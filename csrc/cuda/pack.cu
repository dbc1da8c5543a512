// Entry points for spikes as bits.
#include "ckd/cuda.h"
#include "launch.h"
#include "pack.cuh"

namespace ckd::cuda {
namespace {

template <class Raw>
LaunchSize pack_size(int64_t count) {
  return {block_count(count, kPackedByBlock<Raw>), kPackThreads, 0};
}

template <class Raw>
cudaError_t pack(const PackBits& call, void* stream) {
  const PackBitsCall<Raw> arguments{static_cast<const Raw*>(call.spikes), call.bits, call.count,
                                    aligned({call.spikes})};
  return launch(pack_bits_kernel<Raw>, pack_size<Raw>(call.count), stream, arguments);
}

template <class Raw>
cudaError_t unpack(const UnpackBits& call, Raw one, void* stream) {
  const UnpackBitsCall<Raw> arguments{call.bits, static_cast<Raw*>(call.spikes), call.count, one,
                                      aligned({call.spikes})};
  return launch(unpack_bits_kernel<Raw>, pack_size<Raw>(call.count), stream, arguments);
}

}  // namespace

int pack_bits(const PackBits& call, int device, void* stream) {
  return on_device(device, [&] {
    switch (call.dtype) {
      case DType::kFloat32:
        return pack<uint32_t>(call, stream);
      case DType::kBFloat16:
      case DType::kFloat16:
        return pack<uint16_t>(call, stream);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

int unpack_bits(const UnpackBits& call, int device, void* stream) {
  return on_device(device, [&] {
    switch (call.dtype) {
      case DType::kFloat32:
        return unpack<uint32_t>(call, 0x3F800000u, stream);
      case DType::kBFloat16:
        return unpack<uint16_t>(call, 0x3F80u, stream);
      case DType::kFloat16:
        return unpack<uint16_t>(call, 0x3C00u, stream);
      default:
        return cudaErrorInvalidValue;
    }
  });
}

}  // namespace ckd::cuda
