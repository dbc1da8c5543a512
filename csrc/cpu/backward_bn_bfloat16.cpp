// Compiles the fused steps behind a normalisation over rows of bfloat16.
#ifdef CKD_FUSED
#include "cpu/loop/backward_bn.h"

template struct ckd::cpu::CKD_ISA::FusedBnSteps<ckd::cpu::CKD_ISA::BFloat16>;
#endif
