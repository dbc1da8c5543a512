// Picks the widest CPU level that was compiled and that this processor runs.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ckd/cpu.h"

namespace ckd::cpu {
namespace {

// CKD_CPU_LEVEL=baseline asks for the narrow level on a processor that could do more: to test it, or to time it.
bool choose() {
#if defined(__x86_64__) && defined(CKD_HAVE_V3)
  const bool could = __builtin_cpu_supports("x86-64-v3");
#else
  const bool could = false;
#endif
  const char* wish = std::getenv("CKD_CPU_LEVEL");
  if (!wish || !*wish) return could;
  if (std::strcmp(wish, "baseline") == 0) return false;
  if (std::strcmp(wish, "v3") == 0 && could) return true;
  throw std::invalid_argument(std::string("CKD_CPU_LEVEL must be baseline") + (could ? " or v3" : "") + "; got " +
                              wish);
}

bool wide() {
  static const bool chosen = choose();
  return chosen;
}

}  // namespace

#if defined(CKD_HAVE_V3)
#define CKD_RUN_V3 \
  if (wide()) return v3::run(call, threads);
#else
#define CKD_RUN_V3
#endif
#define CKD_DEFINE(Call) \
  void run(const Call& call, int threads) { CKD_RUN_V3 baseline::run(call, threads); }
CKD_CPU_CALLS(CKD_DEFINE)

const char* level() { return wide() ? "v3" : "baseline"; }

}  // namespace ckd::cpu
