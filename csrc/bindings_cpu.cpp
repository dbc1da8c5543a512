// ckd_kernels._C.cpu: runs a call on the CPU.
#include "bindings.h"
#include "ckd/cpu.h"

namespace py = pybind11;

void bind_cpu(py::module_& m) {
  auto cpu = m.def_submodule("cpu");
  cpu.def("level", &ckd::cpu::level, "Instruction-set level in use.");
  using ckd::cpu::run;
  const py::call_guard<py::gil_scoped_release> no_gil;
  cpu.def("run", py::overload_cast<const ckd::LifForward&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::LifBackward&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::BatchStatistics&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::SamForward&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::BatchFold&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::BatchCoefficients&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::PackBits&, int>(&run), no_gil);
  cpu.def("run", py::overload_cast<const ckd::UnpackBits&, int>(&run), no_gil);
}
