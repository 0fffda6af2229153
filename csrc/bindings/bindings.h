// Integers in, nothing out: addresses and sizes were checked in Python (pyflash/ops/<family>/_cpu.py).
#pragma once
#include <pybind11/pybind11.h>

#include "../cpu/dispatch.h"

namespace py = pybind11;
typedef uintptr_t Address;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Runs the kernel of the selected instruction set.
template <class Params>
void call(const Kernel<Params>& kernel, const Params& params, int num_threads) {
  kernel.of[selected_isa()](params, allowed_threads(num_threads));
}
// The same without the interpreter lock.
template <class Params>
void launch(const Kernel<Params>& kernel, const Params& params, int num_threads) {
  py::gil_scoped_release release;
  call(kernel, params, num_threads);
}

// What a family adds to the module: `PF_BINDINGS(m) { m.def(...); }`, once in the file of its name. It registers itself
// as the library is loaded, so a new family is a new file.
struct Bindings {
  void (*define)(py::module_&);
  const Bindings* next;
  static const Bindings* first;
  explicit Bindings(void (*define)(py::module_&)) : define(define), next(first) { first = this; }
};
#define PF_BINDINGS(m)                    \
  static void define(py::module_& m);     \
  static const Bindings bindings(define); \
  static void define(py::module_& m)
