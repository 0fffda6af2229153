// The tuples that ops/conv/_cpu.py and _cuda.py make.
#pragma once
#include "../common/conv.h"
#include "activation.h"

inline ConvStrides read_strides(Reader& r, const char* field) {
  const auto strides = r.sizes<2 + kConvDims>(field);
  return {strides[0], strides[1], {strides[2], strides[3], strides[4]}};
}

inline ConvAxis read_axis(Reader& r, const char* field) {
  const auto axis = r.sizes<5>(field);
  return {axis[0], axis[1], axis[2], axis[3], axis[4], r.integer("padding")};
}

// All but the addresses: what the workspace depends on.
inline void read_problem(Reader& r, Conv& p) {
  p.x_stride = read_strides(r, "x_stride");
  p.weight_stride = read_strides(r, "weight_stride");
  p.y_stride = read_strides(r, "y_stride");
  p.shape.batch = r.size("batch");
  p.shape.groups = r.size("groups");
  p.shape.in_channels = r.size("in_channels");
  p.shape.out_channels = r.size("out_channels");
  p.shape.axes[0] = read_axis(r, "depth");
  p.shape.axes[1] = read_axis(r, "height");
  p.shape.axes[2] = read_axis(r, "width");
  p.has_style = r.flag("has_style");
  p.algorithm = r.member<ConvAlgorithm>("algorithm", kConvAlgorithms);
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
}

inline Conv read_conv(const char* operation, const py::handle& tensors, const py::handle& problem) {
  Reader t(tensors, operation, "tensors"), r(problem, operation, "problem");
  Conv p;
  p.x = t.address<void>("x");
  p.weight = t.address<void>("weight");
  p.y = t.address<void>("y");
  p.scale = t.address("scale");
  p.bias = t.address("bias");
  p.residual = t.address("residual");
  p.preact = t.address<void>("preact");
  p.packed = t.address<void>("packed");
  p.is_packed = t.flag("is_packed");
  p.workspace = t.address<void>("workspace");
  p.activation = read_activation(t, -1);
  p.style.style = t.address("style");
  p.style.noise = t.address("noise");
  p.style.noise_step = t.size("noise_step");
  p.style.gain = t.number("gain");
  p.style.clamp = t.number("clamp");
  t.done();
  read_problem(r, p);
  return p;
}
