// Integers in, nothing out: addresses and sizes were checked in Python (pyflash/ops/_native/).
#pragma once
#include <pybind11/pybind11.h>

#include "../cpu/dispatch.h"

namespace py = pybind11;
typedef uintptr_t Address;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Runs one kernel of the selected instruction set without the interpreter lock.
template <class Params>
void launch(void (*KernelTable::*kernel)(const Params&, int), const Params& params, int num_threads) {
  py::gil_scoped_release release;
  (kernels().*kernel)(params, allowed_threads(num_threads));
}

// One function a kernel family, defined in the file of its name.
void bind_activation(py::module_&);
void bind_attention(py::module_&);
void bind_dropout(py::module_&);
void bind_layer_norm(py::module_&);
void bind_linear(py::module_&);
void bind_rnn(py::module_&);
