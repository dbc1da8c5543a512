// When two passes are one launch.
#include <cstdlib>
#include <string_view>

#include "all_at_once.cuh"

namespace ckd::cuda {

bool is_best_at_once(const Shape& shape, size_t value_bytes, int tensors) {
  const char* asked = std::getenv("CKD_BN_LAUNCHES");
  if (asked && std::string_view(asked) == "several") return false;
  int device = 0, cooperative = 0, cache = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) != cudaSuccess) return false;
  if (cooperative == 0) return false;
  if (asked && std::string_view(asked) == "one") return true;
  if (cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device) != cudaSuccess) return false;
  const int64_t bytes = shape.outer * shape.steps * shape.frame() * static_cast<int64_t>(value_bytes) * tensors;
  return bytes <= 3 * int64_t{cache};
}

}  // namespace ckd::cuda
