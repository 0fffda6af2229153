#include "attention.h"

#include <pybind11/stl.h>

#include "bindings.h"

PF_KERNEL(attention, workspace, AttentionWorkspace)
PF_KERNEL(attention, fwd, AttentionFwd)
PF_KERNEL(attention, bwd, AttentionBwd)
PF_KERNEL(attention, weights, AttentionFwd)

namespace {

// A region costs as much as this many products of a score and a column.
int threads_for(const Attention& p, int num_threads) {
  return p.B * p.H * p.L * p.S * (p.E + p.Ev) < (1 << 17) ? 1 : num_threads;
}

}  // namespace

PF_BINDINGS(m) {
  py::dict passes;  // read by ops/attention/_cpu.py
  passes["fwd"] = (int)AttentionPass::fwd;
  passes["bwd"] = (int)AttentionPass::bwd;
  m.attr("ATTENTION_PASSES") = passes;
  m.attr("MASK_TYPES") = mask_types();
  m.def("attention_workspace", [](const py::tuple& shape, int num_threads) {
    Reader r(shape, "attention_workspace", "shape");
    AttentionWorkspace p;
    int64_t bytes = 0;
    const auto q = r.four("q_size");
    p.B = q[0], p.H = q[1], p.L = q[2], p.E = q[3];
    p.S = r.size("k_len");
    p.Ev = r.size("value_dim");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    p.pass = r.member<AttentionPass>("pass", kAttentionPasses);
    r.done();
    p.num_threads = allowed_threads(num_threads);
    p.bytes = &bytes;
    launch(attention::workspace, p, 1);
    return bytes;
  });
  auto def_fwd = [&m](const char* name, const Kernel<AttentionFwd>& kernel) {
    m.def(name, [name, &kernel](const py::tuple& problem, const py::tuple& results, int num_threads) {
      AttentionFwd p = {};
      p.of = attention_problem(problem, name);
      Reader r(results, name, "results");
      read_results(r, p);
      p.workspace = r.address<void>("workspace");
      r.done();
      if (!(p.of.H && p.of.L)) return;  // nothing to write, and kernels divide by groups of heads and by rows
      launch(kernel, p, threads_for(p.of, num_threads));
    });
  };
  def_fwd("attention_fwd", attention::fwd);
  def_fwd("attention_weights", attention::weights);
  m.def("attention_bwd", [](const py::tuple& problem, const py::tuple& gradients, int num_threads) {
    AttentionBwd p = {};
    p.of = attention_problem(problem, "attention_bwd");
    Reader r(gradients, "attention_bwd", "gradients");
    read_gradients(r, p);
    p.workspace = r.address<void>("workspace");
    p.of_weights = r.flag("of_weights");
    r.done();
    launch(attention::bwd, p, threads_for(p.of, num_threads));
  });
}
