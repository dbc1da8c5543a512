// What the system tells of the processor.
#include <cstdio>

#include "ckd/cpu.h"

namespace ckd::cpu {
namespace {

// 0 where the system does not tell. Read without streams: a library that carries its own copy of their code, next to
// PyTorch's, may not get as far as the first number.
int64_t last_cache() {
  std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
  if (!file) return 0;
  long long size = 0;
  char unit = 0;
  const bool is_there = std::fscanf(file, "%lld%c", &size, &unit) == 2;
  std::fclose(file);
  if (!is_there) return 0;
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
