# Whether the CUDA kernels are compiled, for which architectures, and how.

set(CKD_DEFAULT_ARCHS 80 90 100 120)

# Sets CKD_WITH_CUDA and, when that is ON, CMAKE_CUDA_COMPILER and CKD_CHOSEN_ARCHS; says what was chosen and why.
# The caller enables the language: CMake allows that at file scope only.
function(ckd_choose_cuda)
  set(CKD_WITH_CUDA OFF PARENT_SCOPE)
  set(CKD_CHOSEN_ARCHS "" PARENT_SCOPE)

  string(TOUPPER "${CKD_CUDA}" choice)
  if(NOT choice MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "CKD_CUDA is '${CKD_CUDA}'; it must be AUTO, ON or OFF.")
  endif()
  if(choice STREQUAL "OFF")
    message(STATUS "CUDA kernels: not built (CKD_CUDA=OFF)")
    return()
  endif()

  # NO_CACHE: an nvcc that was installed or removed since the last build must be noticed.
  find_program(nvcc nvcc NO_CACHE HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH
    PATHS /usr/local/cuda /opt/cuda PATH_SUFFIXES bin)
  if(EXISTS "$ENV{CUDACXX}")
    set(nvcc "$ENV{CUDACXX}")
  endif()
  if(NOT nvcc)
    set(where "no nvcc in CUDACXX, CUDA_HOME/bin, CUDA_PATH/bin, PATH or /usr/local/cuda/bin")
    if(choice STREQUAL "ON")
      message(FATAL_ERROR "CKD_CUDA=ON, but there is ${where}. "
        "Install the CUDA toolkit or point CUDA_HOME at it; CKD_CUDA=OFF builds without CUDA.")
    endif()
    message(STATUS "CUDA kernels: not built (CKD_CUDA=AUTO, ${where})")
    return()
  endif()

  execute_process(COMMAND "${nvcc}" --list-gpu-arch OUTPUT_VARIABLE known RESULT_VARIABLE status ERROR_QUIET)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${nvcc} does not run ('nvcc --list-gpu-arch' failed). "
      "Repair the CUDA toolkit, or build without CUDA: CKD_CUDA=OFF.")
  endif()
  string(REGEX MATCHALL "compute_[0-9]+[af]?" known "${known}")
  list(TRANSFORM known REPLACE "compute_" "")

  if(CKD_CUDA_ARCHS STREQUAL "")
    # Machine code for each, PTX for the newest, so that later processors can run it too.
    set(archs "")
    foreach(arch IN LISTS CKD_DEFAULT_ARCHS)
      if(arch IN_LIST known)
        list(APPEND archs ${arch})
      endif()
    endforeach()
    list(POP_BACK archs newest)
    list(TRANSFORM archs APPEND "-real")
    list(APPEND archs ${newest})
  else()
    string(REGEX REPLACE "[ ,;]+" ";" archs "${CKD_CUDA_ARCHS}")
    foreach(arch IN LISTS archs)
      if(NOT arch MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
        message(FATAL_ERROR "CKD_CUDA_ARCHS has '${arch}'; write an architecture as 90 (machine code and PTX), "
          "90-real (machine code) or 90-virtual (PTX).")
      endif()
      string(REGEX REPLACE "[af]$" "" number "${CMAKE_MATCH_1}")
      if(NOT number IN_LIST known)
        list(SORT known COMPARE NATURAL)
        list(JOIN known ", " known)
        message(FATAL_ERROR "CKD_CUDA_ARCHS has '${arch}', which ${nvcc} does not compile for. It knows: ${known}.")
      endif()
    endforeach()
  endif()

  list(JOIN archs " " text)
  message(STATUS "CUDA kernels: built (CKD_CUDA=${choice}, ${nvcc}) for ${text}")
  set(CKD_WITH_CUDA ON PARENT_SCOPE)
  set(CKD_CHOSEN_ARCHS "${archs}" PARENT_SCOPE)
  set(CMAKE_CUDA_COMPILER "${nvcc}" PARENT_SCOPE)
endfunction()

# Compiles csrc/cuda/*.cu and links them, with the static CUDA runtime, into a target.
function(ckd_add_cuda_kernels target)
  find_package(CUDAToolkit REQUIRED)
  add_library(ckd_cuda OBJECT ${CKD_CUDA_SOURCES})
  set_target_properties(ckd_cuda PROPERTIES
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
  target_include_directories(ckd_cuda PRIVATE csrc/include)
  # The first four keep the arithmetic that of the CPU: separate multiply and add, IEEE division and root, subnormals.
  target_compile_options(ckd_cuda PRIVATE
    -fmad=false -prec-div=true -prec-sqrt=true -ftz=false -Xcompiler=-Wall,-ffp-contract=off)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:ckd_cuda>)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()
