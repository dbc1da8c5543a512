# Which instruction sets the CPU kernels are compiled for.

include(CheckCXXSourceCompiles)
include(CheckCXXSourceRuns)

# Sets CKD_CHOSEN_LEVELS from CKD_CPU_LEVELS, and for each level but the baseline CKD_FLAGS_<level>.
function(ckd_choose_cpu_levels)
  set(known "")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    foreach(level IN ITEMS v3 v4)
      # The dispatcher asks the same: GCC can from version 12 on, Clang from 18 on.
      set(CMAKE_REQUIRED_FLAGS -march=x86-64-${level})
      check_cxx_source_compiles(
        "int main() { return __builtin_cpu_supports(\"x86-64-${level}\"); }" CKD_COMPILER_HAS_${level})
      if(CKD_COMPILER_HAS_${level})
        list(APPEND known ${level})
      endif()
    endforeach()
    unset(CMAKE_REQUIRED_FLAGS)
  endif()

  string(REGEX REPLACE "[ ,;]+" ";" wanted "${CKD_CPU_LEVELS}")
  if(wanted STREQUAL "native" AND NOT CMAKE_CROSSCOMPILING)
    set(wanted baseline)
    foreach(level IN LISTS known)
      set(CMAKE_REQUIRED_QUIET ON)
      unset(CKD_MACHINE_HAS_${level} CACHE)  # a build directory may be seen by several machines
      check_cxx_source_runs(
        "int main() { return __builtin_cpu_supports(\"x86-64-${level}\") ? 0 : 1; }" CKD_MACHINE_HAS_${level})
      if(CKD_MACHINE_HAS_${level})
        set(wanted baseline ${level})
      endif()
    endforeach()
    set(why "native: the widest that this machine runs; CKD_CPU_LEVELS=all compiles every one")
  elseif(wanted STREQUAL "all" OR wanted STREQUAL "native")
    set(wanted baseline ${known})
    set(why "${CKD_CPU_LEVELS}")
  else()
    foreach(level IN LISTS wanted)
      if(NOT level IN_LIST known AND NOT level STREQUAL "baseline")
        list(JOIN known ", " text)
        message(FATAL_ERROR "CKD_CPU_LEVELS has '${level}'; write native, all, or levels out of: baseline, ${text}.")
      endif()
    endforeach()
    set(why "CKD_CPU_LEVELS=${CKD_CPU_LEVELS}")
  endif()

  # The baseline is always there, and first.
  set(chosen baseline)
  foreach(level IN LISTS known)
    if(level IN_LIST wanted)
      list(APPEND chosen ${level})
    endif()
    # prefetchw belongs to no level; where a processor does not have it, it does nothing.
    set(CKD_FLAGS_${level} -march=x86-64-${level} -mprfchw -DCKD_FUSED PARENT_SCOPE)
  endforeach()
  # The fused steps are most of the compile time. The baseline of x86 is for processors of before 2013 and keeps the
  # general path; elsewhere it is all there is.
  if(chosen STREQUAL "baseline")
    set(CKD_FLAGS_baseline -DCKD_FUSED PARENT_SCOPE)
  else()
    set(CKD_FLAGS_baseline "" PARENT_SCOPE)
  endif()
  list(JOIN chosen " " text)
  message(STATUS "CPU kernels: ${text} (${why})")
  set(CKD_CHOSEN_LEVELS "${chosen}" PARENT_SCOPE)
endfunction()
