// Compiles the loops backward behind a normalisation over rows of bfloat16, in a file of its own: none takes longer.
#ifdef CKD_FUSED
#include "cpu/loop/backward.h"

template ckd::cpu::CKD_ISA::BackwardLoop<ckd::cpu::CKD_ISA::BFloat16>
ckd::cpu::CKD_ISA::backward_bn_loop<ckd::cpu::CKD_ISA::BFloat16>(const ckd::LifBackward&, bool);
#endif
