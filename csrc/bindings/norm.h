// The tuples that ops/norm/_cpu.py and _cuda.py make.
#pragma once
#include "../common/norm.h"
#include "reader.h"

inline LayerNormFwd read_layer_norm_fwd(const py::tuple& problem) {
  Reader r(problem, "layer_norm_fwd", "problem");
  LayerNormFwd p;
  p.x = r.address("x");
  p.residual = r.address("residual");
  p.weight = r.address("weight");
  p.bias = r.address("bias");
  p.y = r.address<void>("y");
  p.summed = r.address<void>("summed");
  p.mean = r.address<void>("mean");
  p.rstd = r.address<void>("rstd");
  p.rows = r.size("rows");
  p.cols = r.size("cols");
  p.x_row_stride = r.size("x_row_stride");
  p.residual_row_stride = r.size("residual_row_stride");
  p.eps = r.number("eps");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}

inline LayerNormBwd read_layer_norm_bwd(const py::tuple& problem) {
  Reader r(problem, "layer_norm_bwd", "problem");
  LayerNormBwd p;
  p.dy = r.address("dy");
  p.dsummed = r.address("dsummed");
  p.x = r.address("x");
  p.weight = r.address("weight");
  p.mean = r.address("mean");
  p.rstd = r.address("rstd");
  p.dx = r.address<void>("dx");
  p.dweight = r.address<void>("dweight");
  p.dbias = r.address<void>("dbias");
  p.workspace = r.address<void>("workspace");
  p.rows = r.size("rows");
  p.cols = r.size("cols");
  p.dy_row_stride = r.size("dy_row_stride");
  p.dsummed_row_stride = r.size("dsummed_row_stride");
  p.x_row_stride = r.size("x_row_stride");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}
