// What the files of the module ckd_kernels._C offer each other.
#pragma once
#include <pybind11/pybind11.h>

void bind_calls(pybind11::module_& m);
void bind_cpu(pybind11::module_& m);
#ifndef CKD_NO_CUDA
void bind_cuda(pybind11::module_& m);
#endif
