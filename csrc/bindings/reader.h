// The tuples that Python hands over (pyflash/ops/<family>/_cpu.py and _cuda.py), read field by field in the order of
// the struct they fill.
//
//   Reader r(of, "attention_fwd", "problem");
//   p.q = r.address("q"), p.q_stride = r.four("q_stride");
//   r.done();
//
// The kernels take what is read as addresses and sizes, so what does not fit is an error here: a tuple of another
// length (done), and a field that is not what is read (TypeError naming the operation and the field).
#pragma once
#include <array>
#include <string>
#include <vector>

#include "registration.h"

#ifndef PF_MODULE
#define PF_MODULE "_cpu"  // the name, for errors; setup.py says the others'
#endif

class Reader {
 public:
  Reader(const py::handle& of, const char* operation, const char* argument)
      : operation_(operation), argument_(argument) {
    if (!PyTuple_Check(of.ptr()))
      fail(std::string(argument) + " is of type " + Py_TYPE(of.ptr())->tp_name + ", expected a tuple");
    of_ = of.ptr();
  }

  template <class T = const void>
  T* address(const char* field) {
    return at<T>(read<Address>(field, "an address"));
  }
  int64_t integer(const char* field) { return read<int64_t>(field, "an integer"); }
  // The size of a tensor, or the elements from one to the next: not negative.
  int64_t size(const char* field) { return value_of_size(field, next(field)); }
  uint32_t word(const char* field) { return member<uint32_t>(field, INT64_C(1) << 32); }
  double number(const char* field) { return read<double>(field, "a number"); }
  bool flag(const char* field) { return read<bool>(field, "True or False"); }
  // A number of an enum: [0, count), or with a smaller `first` from there on.
  template <class E>
  E member(const char* field, int64_t count, int64_t first = 0) {
    const int64_t number = integer(field);
    if (number < first || number >= count)
      fail(std::string(field) + " is " + std::to_string(number) + ", expected a number from " + std::to_string(first) +
           " to " + std::to_string(count - 1));
    return (E)number;
  }
  template <size_t kCount>
  std::array<int64_t, kCount> sizes(const char* field) {
    const py::handle sizes = next(field);
    std::array<int64_t, kCount> values;
    if (!PyTuple_Check(sizes.ptr()) || PyTuple_GET_SIZE(sizes.ptr()) != kCount)
      wrong(field, sizes, (std::to_string(kCount) + " integers").c_str());
    for (size_t i = 0; i < kCount; i++) values[i] = value_of_size(field, PyTuple_GET_ITEM(sizes.ptr(), i));
    return values;
  }
  // A list of sizes, or of addresses, as many as there are.
  template <class T>
  std::vector<T> list(const char* field) {
    const py::handle items = next(field);
    if (!PyList_Check(items.ptr())) wrong(field, items, "a list");
    std::vector<T> values(PyList_GET_SIZE(items.ptr()));
    for (size_t i = 0; i < values.size(); i++) values[i] = (T)value_of_size(field, PyList_GET_ITEM(items.ptr(), i));
    return values;
  }
  std::array<int64_t, 4> four(const char* field) { return sizes<4>(field); }

  // All of it must have been read.
  void done() const {
    const Py_ssize_t there = PyTuple_GET_SIZE(of_.ptr());
    if (next_ != there)
      fail(std::string(argument_) + " has " + std::to_string(there) + " fields, expected " + std::to_string(next_));
  }

 private:
  py::handle next(const char* field) {
    if (next_ >= PyTuple_GET_SIZE(of_.ptr()))
      fail(std::string(argument_) + " ends after " + std::to_string(next_) + " fields, before " + field);
    return PyTuple_GET_ITEM(of_.ptr(), next_++);
  }
  template <class T>
  T read(const char* field, const char* wanted) {
    return value<T>(field, next(field), wanted);
  }
  template <class T>
  T value(const char* field, const py::handle& from, const char* wanted) {
    py::detail::make_caster<T> caster;
    if (!caster.load(from, std::is_same<T, double>::value)) wrong(field, from, wanted);
    return py::detail::cast_op<T>(caster);
  }
  int64_t value_of_size(const char* field, const py::handle& from) {
    const int64_t size = value<int64_t>(field, from, "an integer");
    if (size < 0) wrong(field, from, "0 or more");
    return size;
  }
  [[noreturn]] void wrong(const char* field, const py::handle& what, const char* wanted) const {
    fail(std::string(field) + " is " + std::string(py::repr(what)) + ", expected " + wanted);
  }
  [[noreturn]] void fail(const std::string& why) const {
    throw py::type_error(std::string("pyflash." PF_MODULE ".") + operation_ + ": " + why);
  }

  const char *operation_, *argument_;
  py::handle of_;
  Py_ssize_t next_ = 0;
};
