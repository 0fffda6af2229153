// The tuple that ops/attention/_cpu.py and _cuda.py make of a call (`_problem`).
#pragma once
#include "../common/attention.h"
#include "reader.h"

inline Strides4 strides_of(Reader& r, const char* field) {
  const auto a = r.four(field);
  return {{a[0], a[1], a[2], a[3]}};
}

inline Attention attention_problem(const py::tuple& t, const char* operation) {
  Reader r(t, operation, "problem");
  const auto q = r.four("q_size"), k = r.four("k_size");
  Attention p;
  p.B = q[0], p.H = q[1], p.L = q[2], p.E = q[3];
  p.Hkv = k[1], p.S = k[2], p.Ev = r.size("value_dim");
  p.q = r.address("q");
  p.k = r.address("k");
  p.v = r.address("v");
  p.mask = r.address("mask");
  p.alibi_slopes = r.address("alibi_slopes");
  p.q_stride = strides_of(r, "q_stride");
  p.k_stride = strides_of(r, "k_stride");
  p.v_stride = strides_of(r, "v_stride");
  p.mask_stride = strides_of(r, "mask_stride");
  const auto alibi = r.sizes<2>("alibi_stride");
  p.alibi_stride[0] = alibi[0], p.alibi_stride[1] = alibi[1];
  p.window_left = r.integer("window_left");
  p.window_right = r.integer("window_right");
  p.diagonal = r.integer("diagonal");
  p.scale = r.number("scale");
  p.softcap = r.number("softcap");
  p.drop_below = r.word("drop_below");
  p.keep_scale = r.number("keep_scale");
  p.seed = (uint64_t)r.integer("seed");
  p.first_head = r.size("first_head");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  p.mask_type = r.member<MaskType>("mask_type", kMaskTypes, (int)MaskType::none);
  r.done();
  return p;
}

// What both backends' structs have of a forward's results, and of a backward's.
template <class Forward>
void read_results(Reader& r, Forward& p) {
  p.out = r.address<void>("out");
  p.lse = r.address<void>("lse");
  p.lse_low = r.address<void>("lse_low");
  p.out_stride = strides_of(r, "out_stride");
}
template <class Backward>
void read_gradients(Reader& r, Backward& p) {
  p.dout = r.address("dout");
  p.dlse = r.address("dlse");
  p.out = r.address("out");
  p.lse = r.address("lse");
  p.lse_low = r.address("lse_low");
  p.dq = r.address<void>("dq");
  p.dk = r.address<void>("dk");
  p.dv = r.address<void>("dv");
  p.dmask = r.address<void>("dmask");
  p.dout_stride = strides_of(r, "dout_stride");
  p.out_stride = strides_of(r, "out_stride");
  p.dq_stride = strides_of(r, "dq_stride");
  p.dk_stride = strides_of(r, "dk_stride");
  p.dv_stride = strides_of(r, "dv_stride");
  const auto dmask_size = r.four("dmask_size");
  for (int i = 0; i < 4; i++) p.dmask_size[i] = dmask_size[i];
}

// {"none", "boolean"}; the other types of masks are DTYPES.
inline py::dict mask_types() {
  py::dict types;
  types["none"] = (int)MaskType::none;
  types["boolean"] = (int)MaskType::boolean;
  return types;
}
