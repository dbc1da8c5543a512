// What the system tells of the processor.
#include <fstream>

#include "ckd/cpu.h"

namespace ckd::cpu {
namespace {

// 0 where the system does not tell.
int64_t last_cache() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  int64_t size = 0;
  char unit = 0;
  if (!(file >> size >> unit)) return 0;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : 0;
}

bool is_amd() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace

const Processor& processor() {
  static const Processor here{last_cache(), is_amd()};
  return here;
}

}  // namespace ckd::cpu
