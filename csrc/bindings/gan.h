// The tuples that ops/gan/_cpu.py and _cuda.py make.
#pragma once
#include "../common/gan.h"
#include "reader.h"

inline GanFilter read_filter(Reader& r) {
  GanFilter f;
  f.taps = r.address<const float>("taps");
  f.taps_y = r.member<int64_t>("taps_y", kGanMostTaps + 1, 1);
  f.taps_x = r.member<int64_t>("taps_x", kGanMostTaps + 1, 1);
  f.is_separable = r.flag("is_separable");
  f.is_flipped = r.flag("is_flipped");
  f.gain = r.number("gain");
  f.up_y = r.member<int64_t>("up_y", kGanMostStep + 1, 1);
  f.up_x = r.member<int64_t>("up_x", kGanMostStep + 1, 1);
  f.down_y = r.member<int64_t>("down_y", kGanMostStep + 1, 1);
  f.down_x = r.member<int64_t>("down_x", kGanMostStep + 1, 1);
  f.pad_y = r.integer("pad_y");
  f.pad_x = r.integer("pad_x");
  f.in_y = r.size("in_y");
  f.in_x = r.size("in_x");
  f.out_y = r.size("out_y");
  f.out_x = r.size("out_x");
  return f;
}

inline Upfirdn2d read_upfirdn2d(const py::tuple& problem, const char* operation = "upfirdn2d") {
  Reader r(problem, operation, "problem");
  Upfirdn2d p;
  p.x = r.address("x");
  p.y = r.address<void>("y");
  p.filter = read_filter(r);
  p.outer = r.size("outer");
  p.inner = r.size("inner");
  p.workspace = r.address<void>("workspace");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}
