// The tuples that ops/softmax/_cpu.py and _cuda.py make.
#pragma once
#include "../common/softmax.h"
#include "reader.h"

// Of the two types, `wide` may be float beside a half type.
inline void expect_pair(const char* operation, Dtype narrow, Dtype wide) {
  const bool is_half = narrow == Dtype::bf16 || narrow == Dtype::f16;
  if (narrow != wide && !(is_half && wide == Dtype::f32))
    throw py::type_error(std::string("pyflash." PF_MODULE ".") + operation +
                         ": from and to are neither one type nor float32 beside a half type");
}

inline SoftmaxFwd read_softmax_fwd(const py::tuple& problem) {
  Reader r(problem, "softmax_fwd", "problem");
  SoftmaxFwd p;
  p.x = r.address("x");
  p.y = r.address<void>("y");
  p.workspace = r.address<void>("workspace");
  p.outer = r.size("outer");
  p.n = r.size("n");
  p.inner = r.size("inner");
  p.x_outer_stride = r.size("x_outer_stride");
  p.x_step = r.size("x_step");
  p.kind = r.member<SoftmaxKind>("kind", kSoftmaxKinds);
  p.from = r.member<Dtype>("from", kDtypes);
  p.to = r.member<Dtype>("to", kDtypes);
  r.done();
  expect_pair("softmax_fwd", p.from, p.to);
  return p;
}

inline SoftmaxBwd read_softmax_bwd(const py::tuple& problem) {
  Reader r(problem, "softmax_bwd", "problem");
  SoftmaxBwd p;
  p.dy = r.address("dy");
  p.y = r.address("y");
  p.dx = r.address<void>("dx");
  p.workspace = r.address<void>("workspace");
  p.outer = r.size("outer");
  p.n = r.size("n");
  p.inner = r.size("inner");
  p.dy_outer_stride = r.size("dy_outer_stride");
  p.dy_step = r.size("dy_step");
  p.y_outer_stride = r.size("y_outer_stride");
  p.y_step = r.size("y_step");
  p.kind = r.member<SoftmaxKind>("kind", kSoftmaxKinds);
  p.from = r.member<Dtype>("from", kDtypes);
  p.to = r.member<Dtype>("to", kDtypes);
  r.done();
  expect_pair("softmax_bwd", p.to, p.from);
  return p;
}
