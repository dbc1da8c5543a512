// Vectors of one value per channel between the passes of batch normalisation; too short to share among threads.
#include "ckd/cpu.h"
#include "ckd/normalisation.h"

namespace ckd::cpu::CKD_ISA {

void run(const BatchFold& call, int) {
  for (int64_t c = 0; c < call.channels; ++c) {
    call.dtype == DType::kFloat64 ? fold_channel<double>(call, c) : fold_channel<float>(call, c);
  }
}

void run(const BatchCoefficients& call, int) {
  for (int64_t c = 0; c < call.channels; ++c) {
    call.dtype == DType::kFloat64 ? coefficients_of_channel<double>(call, c) : coefficients_of_channel<float>(call, c);
  }
}

}  // namespace ckd::cpu::CKD_ISA
