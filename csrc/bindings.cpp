// The Python module ckd_kernels._C: argument structs in, status out.
#include "bindings.h"

#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "build_config.h"

namespace py = pybind11;

namespace {

py::tuple words(const char* text) {
  std::istringstream stream(text);
  py::list list;
  for (std::string word; stream >> word;) list.append(word);
  return py::tuple(list);
}

// Facts fixed when the module was compiled; what the machine offers at run time is not among them.
py::dict build_info() {
  py::dict info;
  info["version"] = CKD_VERSION;
  info["build_type"] = CKD_BUILD_TYPE;
  info["compiler"] = CKD_COMPILER;
  info["cpu_levels"] = words(CKD_CPU_LEVELS);
#ifdef CKD_NO_CUDA
  info["cuda"] = false;
  info["nvcc"] = py::none();
#else
  info["cuda"] = true;
  info["nvcc"] = CKD_NVCC_VERSION;
#endif
  info["cuda_archs"] = words(CKD_CUDA_ARCHS);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of ckd_kernels. Private: use the functions of ckd_kernels.";
  m.def("build_info", &build_info,
        "Compile-time facts: version, compiler, CPU levels, CUDA toolkit and architectures.");
  bind_calls(m);
  bind_cpu(m);
#ifndef CKD_NO_CUDA
  bind_cuda(m);
#endif
}
