// Compiles the fused steps behind a normalisation over rows of float32.
#ifdef CKD_FUSED
#include "cpu/loop/backward_bn.h"

template struct ckd::cpu::CKD_ISA::FusedBnSteps<ckd::cpu::CKD_ISA::Float32>;
#endif
