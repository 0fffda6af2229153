#include <array>

#include <pybind11/stl.h>

#include "../common/attention.h"
#include "bindings.h"

PF_KERNEL(attention, workspace, AttentionWorkspace)
PF_KERNEL(attention, fwd, AttentionFwd)
PF_KERNEL(attention, bwd, AttentionBwd)
PF_KERNEL(attention, weights, AttentionFwd)

namespace {

typedef std::array<int64_t, 4> Four;
Strides4 strides(const Four& a) { return {{a[0], a[1], a[2], a[3]}}; }

// The tuple that _native/attention.py makes (`_problem`), in its order.
Attention problem_of(const py::tuple& t) {
  auto address = [&](int i) { return at<const void>(t[i].cast<Address>()); };
  auto four = [&](int i) { return strides(t[i].cast<Four>()); };
  auto q = t[0].cast<Four>(), k = t[1].cast<Four>();
  Attention p;
  p.B = q[0], p.H = q[1], p.L = q[2], p.E = q[3];
  p.Hkv = k[1], p.S = k[2], p.Ev = t[2].cast<int64_t>();
  p.q = address(3), p.k = address(4), p.v = address(5), p.mask = address(6), p.alibi_slopes = address(7);
  p.q_stride = four(8), p.k_stride = four(9), p.v_stride = four(10), p.mask_stride = four(11);
  auto alibi = t[12].cast<std::array<int64_t, 2>>();
  p.alibi_stride[0] = alibi[0], p.alibi_stride[1] = alibi[1];
  p.window_left = t[13].cast<int64_t>(), p.window_right = t[14].cast<int64_t>(), p.diagonal = t[15].cast<int64_t>();
  p.scale = t[16].cast<double>(), p.softcap = t[17].cast<double>(), p.dropout_p = t[18].cast<double>();
  p.seed = (uint64_t)t[19].cast<int64_t>();
  p.dtype = (Dtype)t[20].cast<int>(), p.mask_type = (MaskType)t[21].cast<int>();
  p.first_head = t[22].cast<int64_t>();
  return p;
}

// A region costs as much as this many products of a score and a column.
int threads_for(const Attention& p, int num_threads) {
  return p.B * p.H * p.L * p.S * (p.E + p.Ev) < (1 << 17) ? 1 : num_threads;
}

}  // namespace

PF_BINDINGS(m) {
  m.def("attention_workspace", [](const Four& q_size, int64_t S, int64_t Ev, int dtype, int pass, int num_threads) {
    int64_t bytes = 0;
    launch(attention::workspace,
           {q_size[0], q_size[1], q_size[2], S, q_size[3], Ev, (Dtype)dtype, (AttentionPass)pass,
            allowed_threads(num_threads), &bytes},
           1);
    return bytes;
  });
  auto def_fwd = [&m](const char* name, const auto& kernel) {
    m.def(name, [&kernel](const py::tuple& problem, Address out, Address lse, Address lse_low, const Four& out_stride,
                          Address workspace, int num_threads) {
      const Attention p = problem_of(problem);
      if (p.H == 0) return;  // nothing to write, and no group of heads to divide by
      launch(kernel, {p, at<void>(out), at<void>(lse), at<void>(lse_low), strides(out_stride), at<void>(workspace)},
             threads_for(p, num_threads));
    });
  };
  def_fwd("attention_fwd", attention::fwd);
  def_fwd("attention_weights", attention::weights);
  m.def("attention_bwd", [](const py::tuple& problem, const std::array<Address, 10>& tensors, const Four& dout_stride,
                            const Four& out_stride, const Four& dq_stride, const Four& dk_stride, const Four& dv_stride,
                            const Four& dmask_size, bool of_weights, int num_threads) {
    AttentionBwd p = {};
    p.of = problem_of(problem);
    p.dout = at<void>(tensors[0]), p.dlse = at<void>(tensors[1]), p.out = at<void>(tensors[2]);
    p.lse = at<void>(tensors[3]), p.dq = at<void>(tensors[4]), p.dk = at<void>(tensors[5]), p.dv = at<void>(tensors[6]);
    p.dmask = at<void>(tensors[7]), p.workspace = at<void>(tensors[8]), p.lse_low = at<void>(tensors[9]);
    p.dout_stride = strides(dout_stride), p.out_stride = strides(out_stride), p.dq_stride = strides(dq_stride);
    p.dk_stride = strides(dk_stride), p.dv_stride = strides(dv_stride);
    p.of_weights = of_weights;
    for (int i = 0; i < 4; i++) p.dmask_size[i] = dmask_size[i];
    launch(attention::bwd, p, threads_for(p.of, num_threads));
  });
}
