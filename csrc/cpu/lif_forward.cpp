// Multi-step neurons forward on a CPU, but for rows of bfloat16.
#include "ckd/cpu.h"
#include "cpu/tile/forward.h"

namespace ckd::cpu::CKD_ISA {

extern template void forward<BFloat16>(const LifForward& call, int threads);

void run(const LifForward& call, int threads) {
  with_storage(call.dtype, [&](auto s) { forward<decltype(s)>(call, threads); });
}

}  // namespace ckd::cpu::CKD_ISA
