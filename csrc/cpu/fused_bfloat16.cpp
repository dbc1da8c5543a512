// Compiles the fused steps of every neuron over rows of bfloat16.
#ifdef CKD_FUSED
#include "fused.h"

template struct ckd::cpu::CKD_ISA::FusedSteps<ckd::cpu::CKD_ISA::BFloat16>;
#endif
