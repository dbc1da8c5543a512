# Whether the CUDA kernels are compiled, for which architectures, and how.

# Of a build for all machines; the first is the oldest that is served.
set(CKD_ALL_ARCHS 80 90 100 120)

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
  list(SORT known COMPARE NATURAL)

  ckd_choose_archs("${nvcc}" "${known}")
  ckd_check_host_compiler("${nvcc}")

  list(JOIN archs " " text)
  message(STATUS "CUDA kernels: ${text} (${why}; CKD_CUDA=${choice}, ${nvcc})")
  set(CKD_WITH_CUDA ON PARENT_SCOPE)
  set(CKD_CHOSEN_ARCHS "${archs}" PARENT_SCOPE)
  set(CMAKE_CUDA_COMPILER "${nvcc}" PARENT_SCOPE)
endfunction()

# Sets archs and why from CKD_CUDA_ARCHS, the GPUs that are here and the architectures that nvcc knows.
function(ckd_choose_archs nvcc known)
  list(GET CKD_ALL_ARCHS 0 oldest)
  set(served "")
  foreach(arch IN LISTS known)
    if(arch MATCHES "^[0-9]+$" AND arch GREATER_EQUAL oldest)
      list(APPEND served ${arch})
    endif()
  endforeach()
  if(NOT 90 IN_LIST served)
    message(FATAL_ERROR "${nvcc} is too old: it does not compile for compute capability 9.0. "
      "Install CUDA 12 or later, or build without CUDA: CKD_CUDA=OFF.")
  endif()

  set(archs "")
  if(CKD_CUDA_ARCHS STREQUAL "all")
    # Machine code for each, PTX for the newest, so that later processors can run it too.
    foreach(arch IN LISTS CKD_ALL_ARCHS)
      if(arch IN_LIST served)
        list(APPEND archs ${arch})
      endif()
    endforeach()
    list(POP_BACK archs newest)
    list(TRANSFORM archs APPEND "-real")
    list(APPEND archs ${newest})
    set(why "CKD_CUDA_ARCHS=all")
  elseif(NOT CKD_CUDA_ARCHS STREQUAL "")
    string(REGEX REPLACE "[ ,;]+" ";" archs "${CKD_CUDA_ARCHS}")
    foreach(arch IN LISTS archs)
      if(NOT arch MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
        message(FATAL_ERROR "CKD_CUDA_ARCHS has '${arch}'; write all, or an architecture as 90 (machine code and PTX), "
          "90-real (machine code) or 90-virtual (PTX).")
      endif()
      string(REGEX REPLACE "[af]$" "" number "${CMAKE_MATCH_1}")
      if(NOT number IN_LIST known)
        list(JOIN known ", " text)
        message(FATAL_ERROR "CKD_CUDA_ARCHS has '${arch}', which ${nvcc} does not compile for. It knows: ${text}.")
      endif()
    endforeach()
    set(why "CKD_CUDA_ARCHS=${CKD_CUDA_ARCHS}")
  else()
    ckd_find_gpus()
    foreach(gpu IN LISTS gpus)
      if(gpu IN_LIST served)
        list(APPEND archs ${gpu}-real)
      elseif(gpu GREATER oldest)
        # nvcc does not know this GPU, whose driver translates the PTX of an older one.
        set(older ${oldest})
        foreach(arch IN LISTS served)
          if(arch LESS gpu)
            set(older ${arch})
          endif()
        endforeach()
        list(APPEND archs ${older})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES archs)
    set(why "the GPU that is here; CKD_CUDA_ARCHS=all compiles for every one")
    if(archs STREQUAL "")
      # Kernels for 9.0 and later launch one another early, which PTX of older ones does not know.
      set(archs 90)
      string(CONCAT why "no GPU here, hence compute capability 9.0 and, by PTX, later ones; CKD_CUDA_ARCHS=all compiles "
        "for every one, which takes longer")
    endif()
  endif()
  set(archs "${archs}" PARENT_SCOPE)
  set(why "${why}" PARENT_SCOPE)
endfunction()

# Sets gpus to the architectures of those that are here, each once: 90 for compute capability 9.0.
function(ckd_find_gpus)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE said RESULT_VARIABLE status ERROR_QUIET TIMEOUT 30)
  set(gpus "")
  if(status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+[.][0-9]" gpus "${said}")
    list(TRANSFORM gpus REPLACE "[.]" "")
    list(SORT gpus COMPARE NATURAL)
    list(REMOVE_DUPLICATES gpus)
  endif()
  set(gpus "${gpus}" PARENT_SCOPE)
endfunction()

# nvcc hands the host's code to a compiler of a version that it knows; better said now than by every file.
function(ckd_check_host_compiler nvcc)
  set(host "")
  if(NOT "$ENV{CUDAHOSTCXX}" STREQUAL "")
    set(host -ccbin "$ENV{CUDAHOSTCXX}")
  endif()
  separate_arguments(flags NATIVE_COMMAND "$ENV{CUDAFLAGS}")
  execute_process(COMMAND "${nvcc}" ${host} ${flags} -std=c++20 -E -x cu /dev/null
    OUTPUT_QUIET ERROR_VARIABLE said RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    if(said MATCHES "unsupported [^!\n]*![^!\n]*!")
      set(said "${CMAKE_MATCH_0}")
    endif()
    string(STRIP "${said}" said)
    message(FATAL_ERROR "${nvcc} and its host compiler do not fit: ${said} "
      "Name a compiler that it supports, such as CUDAHOSTCXX=g++-12, or build without CUDA: CKD_CUDA=OFF.")
  endif()
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
