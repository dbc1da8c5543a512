// Picks the widest CPU level that was compiled and that this processor runs.
#include <cstdlib>
#include <cstring>

#include "ckd/cpu.h"

namespace ckd::cpu {
namespace {

// CKD_CPU_LEVEL=baseline asks for the narrow level on a processor that could do more: to test it, or to time it.
bool wide() {
#if defined(__x86_64__) && defined(CKD_HAVE_V3)
  const char* wish = std::getenv("CKD_CPU_LEVEL");
  return __builtin_cpu_supports("x86-64-v3") && !(wish && std::strcmp(wish, "baseline") == 0);
#else
  return false;
#endif
}

const bool kWide = wide();

}  // namespace

#if defined(CKD_HAVE_V3)
#define CKD_RUN_V3 \
  if (kWide) return v3::run(call, threads);
#else
#define CKD_RUN_V3
#endif
#define CKD_DEFINE(Call) \
  void run(const Call& call, int threads) { CKD_RUN_V3 baseline::run(call, threads); }
CKD_CPU_CALLS(CKD_DEFINE)

const char* level() { return kWide ? "v3" : "baseline"; }

}  // namespace ckd::cpu
