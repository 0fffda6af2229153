// Integers in, nothing out: addresses and sizes were checked in Python (pyflash/ops/<family>/_cpu*.py and _cuda*.py).
// What every module of ours is made of.
#pragma once
#include <pybind11/pybind11.h>

namespace py = pybind11;
typedef uintptr_t Address;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
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
