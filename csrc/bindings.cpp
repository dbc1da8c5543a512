// The Python module ckd_kernels._C: argument structs in, status out. A call is built once, from addresses and sizes,
// and run by one backend. One file, because what takes time to compile is pybind11.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "build_config.h"
#include "ckd/cpu.h"
#ifndef CKD_NO_CUDA
#include "ckd/cuda.h"
#endif

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

using Address = uintptr_t;  // of a tensor's first element; 0: no tensor

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

py::tuple surrogate_names() {
  py::list names;
#define CKD_NAME(S) names.append(ckd::S::name);
  CKD_SURROGATES(CKD_NAME)
#undef CKD_NAME
  return py::tuple(names);
}

ckd::Neuron make_neuron(int charge, int reset, bool detach_reset, int surrogate, double leak, double threshold,
                        double fire_level, double rest, double drop_now, double drop_later, double c0, double c1) {
  return ckd::Neuron{static_cast<ckd::Charge>(charge),
                     static_cast<ckd::Reset>(reset),
                     detach_reset,
                     static_cast<ckd::SurrogateKind>(surrogate),
                     leak,
                     threshold,
                     fire_level,
                     rest,
                     drop_now,
                     drop_later,
                     c0,
                     c1};
}

ckd::Shape make_shape(int64_t outer, int64_t steps, int64_t rows, int64_t channels, int64_t inner, bool repeated) {
  return ckd::Shape{outer, steps, rows, channels, inner, repeated};
}

ckd::Affine make_affine(Address scale, Address shift, Address residual) {
  return ckd::Affine{pointer<void>(scale), pointer<void>(shift), pointer<void>(residual)};
}

ckd::LifForward make_lif_forward(const ckd::Neuron& neuron, const ckd::Shape& shape, int dtype, Address x,
                                 Address v_init, Address leak, bool leak_per_channel, Address spikes, Address v_last,
                                 Address sam, Address checkpoints, const ckd::Affine& affine) {
  ckd::LifForward call;
  call.neuron = neuron;
  call.shape = shape;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.x = pointer<void>(x);
  call.v_init = pointer<void>(v_init);
  call.leak = pointer<void>(leak);
  call.leak_per_channel = leak_per_channel;
  call.spikes = pointer<void>(spikes);
  call.v_last = pointer<void>(v_last);
  call.sam = pointer<float>(sam);
  call.checkpoints = pointer<void>(checkpoints);
  call.affine = affine;
  return call;
}

ckd::LifBackward make_lif_backward(const ckd::Neuron& neuron, const ckd::Shape& shape, int dtype, Address x,
                                   Address v_init, Address leak, bool leak_per_channel, Address checkpoints,
                                   Address grad_spikes, Address grad_v, Address grad_sam, Address grad_x,
                                   Address grad_v_init, Address grad_leak, const ckd::Affine& affine, Address mean,
                                   Address offset, Address slope, Address grad_residual, Address sums) {
  ckd::LifBackward call;
  call.neuron = neuron;
  call.shape = shape;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.x = pointer<void>(x);
  call.v_init = pointer<void>(v_init);
  call.leak = pointer<void>(leak);
  call.leak_per_channel = leak_per_channel;
  call.checkpoints = pointer<void>(checkpoints);
  call.grad_spikes = pointer<void>(grad_spikes);
  call.grad_v = pointer<void>(grad_v);
  call.grad_sam = pointer<float>(grad_sam);
  call.grad_x = pointer<void>(grad_x);
  call.grad_v_init = pointer<void>(grad_v_init);
  call.grad_leak = pointer<void>(grad_leak);
  call.affine = affine;
  call.mean = pointer<void>(mean);
  call.offset = pointer<void>(offset);
  call.slope = pointer<void>(slope);
  call.grad_residual = pointer<void>(grad_residual);
  call.sums = pointer<double>(sums);
  return call;
}

ckd::BatchStatistics make_batch_statistics(const ckd::Shape& shape, int dtype, Address y, Address moments) {
  ckd::BatchStatistics call;
  call.shape = shape;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.y = pointer<void>(y);
  call.moments = pointer<double>(moments);
  return call;
}

ckd::BatchFold make_batch_fold(int64_t channels, int dtype, Address moments, Address weight, Address bias,
                               Address running_mean, Address running_var, Address count, double values, double momentum,
                               double eps, Address folded) {
  ckd::BatchFold call;
  call.channels = channels;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.moments = pointer<double>(moments);
  call.weight = pointer<void>(weight);
  call.bias = pointer<void>(bias);
  call.running_mean = pointer<void>(running_mean);
  call.running_var = pointer<void>(running_var);
  call.count = pointer<double>(count);
  call.values = values;
  call.momentum = momentum;
  call.eps = eps;
  call.folded = pointer<void>(folded);
  return call;
}

ckd::BatchCoefficients make_batch_coefficients(int64_t channels, int dtype, Address sums, Address invstd, Address count,
                                               double values, Address coefficients) {
  ckd::BatchCoefficients call;
  call.channels = channels;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.sums = pointer<double>(sums);
  call.invstd = pointer<void>(invstd);
  call.count = pointer<double>(count);
  call.values = values;
  call.coefficients = pointer<void>(coefficients);
  return call;
}

ckd::SamForward make_sam(const ckd::Shape& shape, int dtype, Address spikes, Address sam) {
  ckd::SamForward call;
  call.shape = shape;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.spikes = pointer<void>(spikes);
  call.sam = pointer<void>(sam);
  return call;
}

ckd::PackBits make_pack_bits(int dtype, int64_t count, Address spikes, Address bits) {
  ckd::PackBits call;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.count = count;
  call.spikes = pointer<void>(spikes);
  call.bits = pointer<uint8_t>(bits);
  return call;
}

ckd::UnpackBits make_unpack_bits(int dtype, int64_t count, Address bits, Address spikes) {
  ckd::UnpackBits call;
  call.dtype = static_cast<ckd::DType>(dtype);
  call.count = count;
  call.bits = pointer<uint8_t>(bits);
  call.spikes = pointer<void>(spikes);
  return call;
}

void bind_calls(py::module_& m) {
  m.attr("SURROGATES") = surrogate_names();
  py::class_<ckd::Neuron>(m, "Neuron").def(py::init(&make_neuron));
  py::class_<ckd::Shape>(m, "Shape").def(py::init(&make_shape));
  py::class_<ckd::Affine>(m, "Affine").def(py::init(&make_affine));
  py::class_<ckd::LifForward>(m, "LifForward").def(py::init(&make_lif_forward));
  py::class_<ckd::LifBackward>(m, "LifBackward").def(py::init(&make_lif_backward));
  py::class_<ckd::BatchStatistics>(m, "BatchStatistics").def(py::init(&make_batch_statistics));
  py::class_<ckd::BatchFold>(m, "BatchFold").def(py::init(&make_batch_fold));
  py::class_<ckd::BatchCoefficients>(m, "BatchCoefficients").def(py::init(&make_batch_coefficients));
  py::class_<ckd::SamForward>(m, "Sam").def(py::init(&make_sam));
  py::class_<ckd::PackBits>(m, "PackBits").def(py::init(&make_pack_bits));
  py::class_<ckd::UnpackBits>(m, "UnpackBits").def(py::init(&make_unpack_bits));
}

void bind_cpu(py::module_& m) {
  auto cpu = m.def_submodule("cpu");
  cpu.def("level", &ckd::cpu::level, "Instruction-set level in use.");
  cpu.def("widest_level", &ckd::cpu::widest_level, "The widest that this processor could run.");
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

#ifndef CKD_NO_CUDA
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

void bind_cuda(py::module_& m) {
  auto cuda = m.def_submodule("cuda");
  cuda.def("device_count", &ckd::cuda::device_count);
  cuda.def("error_string", &ckd::cuda::error_string);
  cuda.def("is_compiled_in", &ckd::cuda::is_compiled_in);
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
