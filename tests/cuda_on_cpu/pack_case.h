// Values as bits and back, by the CUDA entry points, compared value by value.
#pragma once
#include "case.h"

struct PackCase {
  ckd::DType dtype = ckd::DType::kFloat32;
  int64_t count = 1;
  bool misaligned = false;  // values begin beside a 16-byte boundary
  unsigned seed = 1;

  std::string name() const {
    return "pack dtype " + std::to_string(int(dtype)) + " count " + std::to_string(count) +
           (misaligned ? " misaligned" : "");
  }
};

template <class S>
std::string run_pack(const PackCase& c) {
  std::mt19937 random(c.seed);
  Guarded<S> values(c.count, c.misaligned), spikes(c.count, c.misaligned);
  Guarded<uint8_t> bits((c.count + 7) / 8, false);
  const float some[] = {0.0f, 0.0f, -0.0f, 0.0f, 1.0f, 1.0f, 1.0f, -2.0f, NAN, INFINITY, 6e-8f};
  for (int64_t i = 0; i < c.count; ++i) values[i] = S(some[random() % 11]);

  ckd::PackBits pack;
  pack.dtype = c.dtype;
  pack.count = c.count;
  pack.spikes = values.data;
  pack.bits = bits.data;
  if (const int status = ckd::cuda::pack_bits(pack, 0, nullptr)) return "pack_bits: status " + std::to_string(status);
  ckd::UnpackBits unpack;
  unpack.dtype = c.dtype;
  unpack.count = c.count;
  unpack.bits = bits.data;
  unpack.spikes = spikes.data;
  if (const int status = ckd::cuda::unpack_bits(unpack, 0, nullptr))
    return "unpack_bits: status " + std::to_string(status);

  for (int64_t i = 0; i < static_cast<int64_t>(8 * bits.size()); ++i) {
    const bool want = i < c.count && !(static_cast<float>(values[i]) == 0.0f);
    if ((bits[i / 8] >> i % 8 & 1) != want) return "bit " + std::to_string(i) + " is wrong";
    if (i < c.count && static_cast<float>(spikes[i]) != float(want)) return "spike " + std::to_string(i) + " is wrong";
  }
  return values.intact() && spikes.intact() && bits.intact() ? "" : "memory beside a tensor was written";
}

inline std::string run(const PackCase& c) {
  switch (c.dtype) {
    case ckd::DType::kFloat32:
      return run_pack<float>(c);
    case ckd::DType::kBFloat16:
      return run_pack<__nv_bfloat16>(c);
    default:
      return run_pack<__half>(c);
  }
}
