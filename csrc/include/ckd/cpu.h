// CPU entry points; csrc/dispatch.cpp picks the instruction-set level at run time.
#pragma once
#include "ckd/params.h"

namespace ckd::cpu {

// X(struct of a call): every op that runs on a CPU.
#define CKD_CPU_CALLS(X) \
  X(LifForward)          \
  X(LifBackward) X(BatchStatistics) X(SamForward) X(BatchFold) X(BatchCoefficients) X(PackBits) X(UnpackBits)

#define CKD_DECLARE(Call) void run(const Call& call, int threads);
CKD_CPU_CALLS(CKD_DECLARE)

// The kernels of one level, compiled from csrc/cpu with -DCKD_ISA=<level>.
namespace baseline {
CKD_CPU_CALLS(CKD_DECLARE)
}
namespace v3 {
CKD_CPU_CALLS(CKD_DECLARE)
}
namespace v4 {
CKD_CPU_CALLS(CKD_DECLARE)
}
#undef CKD_DECLARE

const char* level();
// What the processor could run, whether it was compiled or not.
const char* widest_level();

// What the kernels want to know of the processor that they run on.
struct Processor {
  int64_t last_cache;  // bytes of the last-level cache, or 0
  bool is_amd;
};
const Processor& processor();

}  // namespace ckd::cpu
