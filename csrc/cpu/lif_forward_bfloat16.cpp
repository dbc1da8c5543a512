// Multi-step neurons forward over rows of bfloat16, in a file of its own: it takes half of the time to compile.
#include "cpu/tile/forward.h"

template void ckd::cpu::CKD_ISA::forward<ckd::cpu::CKD_ISA::BFloat16>(const ckd::LifForward& call, int threads);
