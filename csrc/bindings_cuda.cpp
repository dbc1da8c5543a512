// ckd_kernels._C.cuda: queues a call on a stream of a GPU.
#ifndef CKD_NO_CUDA
#include "bindings.h"
#include "ckd/cuda.h"

namespace py = pybind11;

namespace {

// Bytes of device memory that a call needs beside its tensors.
int64_t workspace(const ckd::LifForward&) { return 0; }
int64_t workspace(const ckd::LifBackward& call) { return ckd::cuda::lif_backward_workspace(call); }
int64_t workspace(const ckd::BatchStatistics& call) { return ckd::cuda::bn_statistics_workspace(call); }
int64_t workspace(const ckd::BatchFold&) { return 0; }
int64_t workspace(const ckd::BatchCoefficients&) { return 0; }
int64_t workspace(const ckd::SamForward&) { return 0; }
int64_t workspace(const ckd::PackBits&) { return 0; }
int64_t workspace(const ckd::UnpackBits&) { return 0; }

int run(const ckd::LifForward& call, uintptr_t, int device, uintptr_t stream) {
  return ckd::cuda::lif_forward(call, device, reinterpret_cast<void*>(stream));
}
int run(const ckd::LifBackward& call, uintptr_t scratch, int device, uintptr_t stream) {
  return ckd::cuda::lif_backward(call, reinterpret_cast<void*>(scratch), device, reinterpret_cast<void*>(stream));
}
int run(const ckd::BatchStatistics& call, uintptr_t scratch, int device, uintptr_t stream) {
  return ckd::cuda::bn_statistics(call, reinterpret_cast<void*>(scratch), device, reinterpret_cast<void*>(stream));
}
int run(const ckd::BatchFold& call, uintptr_t, int device, uintptr_t stream) {
  return ckd::cuda::bn_fold(call, device, reinterpret_cast<void*>(stream));
}
int run(const ckd::BatchCoefficients& call, uintptr_t, int device, uintptr_t stream) {
  return ckd::cuda::bn_coefficients(call, device, reinterpret_cast<void*>(stream));
}
int run(const ckd::SamForward& call, uintptr_t, int device, uintptr_t stream) {
  return ckd::cuda::sam(call, device, reinterpret_cast<void*>(stream));
}
int run(const ckd::PackBits& call, uintptr_t, int device, uintptr_t stream) {
  return ckd::cuda::pack_bits(call, device, reinterpret_cast<void*>(stream));
}
int run(const ckd::UnpackBits& call, uintptr_t, int device, uintptr_t stream) {
  return ckd::cuda::unpack_bits(call, device, reinterpret_cast<void*>(stream));
}

template <class Call>
void bind(py::module_& cuda) {
  cuda.def("workspace", py::overload_cast<const Call&>(&workspace));
  cuda.def("run", py::overload_cast<const Call&, uintptr_t, int, uintptr_t>(&run),
           py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_cuda(py::module_& m) {
  auto cuda = m.def_submodule("cuda");
  cuda.def("device_count", &ckd::cuda::device_count);
  cuda.def("error_string", &ckd::cuda::error_string);
  bind<ckd::LifForward>(cuda);
  bind<ckd::LifBackward>(cuda);
  bind<ckd::BatchStatistics>(cuda);
  bind<ckd::BatchFold>(cuda);
  bind<ckd::BatchCoefficients>(cuda);
  bind<ckd::SamForward>(cuda);
  bind<ckd::PackBits>(cuda);
  bind<ckd::UnpackBits>(cuda);
}
#endif
