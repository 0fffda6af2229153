// The tuples that ops/pointwise/_cpu_activation.py and _cuda.py make.
#pragma once
#include "../common/pointwise.h"
#include "activation.h"

inline ActivationFwd read_activation_fwd(const py::tuple& problem) {
  Reader r(problem, "activation_fwd", "problem");
  ActivationFwd p;
  p.x = r.address("x");
  p.y = r.address<void>("y");
  p.n = r.size("n");
  p.activation = read_activation(r);
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}

inline ActivationBwd read_activation_bwd(const py::tuple& problem) {
  Reader r(problem, "activation_bwd", "problem");
  ActivationBwd p;
  p.dy = r.address("dy");
  p.saved = r.address("saved");
  p.dx = r.address<void>("dx");
  p.n = r.size("n");
  p.activation = read_activation(r);
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}

inline ActivationBwdBwd read_activation_bwd_bwd(const py::tuple& problem) {
  Reader r(problem, "activation_bwd_bwd", "problem");
  ActivationBwdBwd p;
  p.ddx = r.address("ddx");
  p.dy = r.address("dy");
  p.saved = r.address("saved");
  p.ddy = r.address<void>("ddy");
  p.dsaved = r.address<void>("dsaved");
  p.n = r.size("n");
  p.activation = read_activation(r);
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}
