// Picks the widest CPU level that was compiled and that this processor runs.
#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ckd/cpu.h"

namespace ckd::cpu {
namespace {

enum class Level { kBaseline, kV3, kV4 };
constexpr std::array<const char*, 3> kNames{"baseline", "v3", "v4"};  // as CKD_CPU_LEVEL has them

bool could([[maybe_unused]] Level level) {
#if defined(CKD_HAVE_V3)
  if (level == Level::kV3) return __builtin_cpu_supports("x86-64-v3");
#endif
#if defined(CKD_HAVE_V4)
  if (level == Level::kV4) return __builtin_cpu_supports("x86-64-v4");
#endif
  return level == Level::kBaseline;
}

// CKD_CPU_LEVEL asks for a narrower level than the processor could run: to test it, or to time it.
Level choose() {
  const char* wish = std::getenv("CKD_CPU_LEVEL");
  const bool any = !wish || !*wish;
  std::string names;
  for (Level level : {Level::kV4, Level::kV3, Level::kBaseline}) {
    if (!could(level)) continue;
    const char* name = kNames[static_cast<int>(level)];
    if (any || std::string(wish) == name) return level;
    names = names.empty() ? name : name + (", " + names);
  }
  throw std::invalid_argument("CKD_CPU_LEVEL must be one of " + names + "; got " + wish);
}

Level chosen() {
  static const Level level = choose();
  return level;
}

}  // namespace

#if defined(CKD_HAVE_V3)
#define CKD_RUN_V3 \
  if (chosen() == Level::kV3) return v3::run(call, threads);
#else
#define CKD_RUN_V3
#endif
#if defined(CKD_HAVE_V4)
#define CKD_RUN_V4 \
  if (chosen() == Level::kV4) return v4::run(call, threads);
#else
#define CKD_RUN_V4
#endif
#define CKD_DEFINE(Call) \
  void run(const Call& call, int threads) { CKD_RUN_V4 CKD_RUN_V3 baseline::run(call, threads); }
CKD_CPU_CALLS(CKD_DEFINE)

const char* widest_level() {
#if defined(__x86_64__)
  // In features that every compiler asks for.
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v3) return kNames[static_cast<int>(v4 ? Level::kV4 : Level::kV3)];
#endif
  return kNames[static_cast<int>(Level::kBaseline)];
}

const char* level() { return kNames[static_cast<int>(chosen())]; }

}  // namespace ckd::cpu
