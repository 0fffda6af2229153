// The tuples that ops/recurrent/_cpu.py and _cuda.py make: `shape`, `layout`, and the addresses of weights and
// gradients.
#pragma once
#include "../common/recurrent.h"
#include "reader.h"

inline RnnShape shape_of(const py::tuple& t, const char* operation) {
  Reader r(t, operation, "shape");
  RnnShape s;
  s.length = r.size("length");
  s.batch = r.size("batch");
  s.input = r.size("input");
  s.hidden = r.size("hidden");
  s.output = r.size("output");
  s.directions = r.member<int64_t>("directions", kMaxDirections + 1, 1);
  s.cell = r.member<Cell>("cell", kCells);
  s.has_projection = r.flag("has_projection");
  s.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return s;
}

inline RnnRows rows_of(const py::tuple& t, const char* operation) {
  Reader r(t, operation, "layout");
  RnnRows rows;
  rows.active = r.address<const int64_t>("active");
  rows.offsets = r.address<const int64_t>("offsets");
  rows.order = r.address<const int64_t>("order");
  rows.is_packed = r.flag("is_packed");
  rows.x_step_stride = r.size("x_step_stride");
  rows.x_row_stride = r.size("x_row_stride");
  rows.y_step_rows = r.size("y_step_rows");
  rows.y_row_rows = r.size("y_row_rows");
  r.done();
  return rows;
}

// RnnWeights or RnnGradients of each direction.
template <class To>
void read_weights(const py::list& from, const RnnShape& s, const char* operation, const char* argument, To& to) {
  if ((int64_t)from.size() != s.directions)
    throw py::type_error(std::string("pyflash." PF_MODULE ".") + operation + ": " + argument + " are those of " +
                         std::to_string(from.size()) + " directions, expected " + std::to_string(s.directions));
  for (int64_t d = 0; d < s.directions; d++) {
    Reader r(from[d], operation, argument);
    to[d].w_ih = r.address<void>("w_ih");
    to[d].w_hh = r.address<void>("w_hh");
    to[d].b_ih = r.address<void>("b_ih");
    to[d].b_hh = r.address<void>("b_hh");
    to[d].w_hr = r.address<void>("w_hr");
    r.done();
  }
}

inline py::dict cells_of_recurrent() {  // read by ops/recurrent/_cpu.py and _cuda.py
  py::dict cells;
  cells["lstm"] = (int)Cell::lstm;
  cells["gru"] = (int)Cell::gru;
  cells["rnn_tanh"] = (int)Cell::rnn_tanh;
  cells["rnn_relu"] = (int)Cell::rnn_relu;
  return cells;
}
