// Picks the widest CPU level that was compiled and that this processor runs.
#include <cstdlib>
#include <cstring>

#include "ckd/cpu.h"

namespace ckd::cpu {
namespace {

enum class Level { kBaseline, kV3, kV4 };

Level best() {
#if defined(__x86_64__)
#if defined(CKD_HAVE_V4)
  if (__builtin_cpu_supports("x86-64-v4")) return Level::kV4;
#endif
#if defined(CKD_HAVE_V3)
  if (__builtin_cpu_supports("x86-64-v3")) return Level::kV3;
#endif
#endif
  return Level::kBaseline;
}

// CKD_CPU_LEVEL asks for a narrower level than the processor's best: to test it, or to time it.
Level chosen() {
  const Level widest = best();
  const char* wish = std::getenv("CKD_CPU_LEVEL");
  if (wish && std::strcmp(wish, "baseline") == 0) return Level::kBaseline;
  if (wish && std::strcmp(wish, "v3") == 0 && widest == Level::kV4) return Level::kV3;
  return widest;
}

const Level kLevel = chosen();

}  // namespace

#if defined(CKD_HAVE_V4)
#define CKD_RUN_V4 \
  if (kLevel == Level::kV4) return v4::run(call, threads);
#else
#define CKD_RUN_V4
#endif
#if defined(CKD_HAVE_V3)
#define CKD_RUN_V3 \
  if (kLevel == Level::kV3) return v3::run(call, threads);
#else
#define CKD_RUN_V3
#endif
#define CKD_DEFINE(Call)                       \
  void run(const Call& call, int threads) {    \
    CKD_RUN_V4 CKD_RUN_V3 return baseline::run(call, threads); \
  }
CKD_CPU_CALLS(CKD_DEFINE)

const char* level() { return kLevel == Level::kV4 ? "v4" : kLevel == Level::kV3 ? "v3" : "baseline"; }

}  // namespace ckd::cpu
