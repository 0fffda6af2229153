#include "../common/cross_entropy.h"

#include "bindings.h"
#include "reader.h"

PF_KERNEL(loss, cross_entropy_fwd, CrossEntropyFwd)
PF_KERNEL(loss, cross_entropy_bwd, CrossEntropyBwd)
PF_KERNEL(loss, nll_loss_fwd, CrossEntropyFwd)
PF_KERNEL(loss, nll_loss_bwd, CrossEntropyBwd)
PF_KERNEL(loss, linear_cross_entropy_begin, LinearCrossEntropy)
PF_KERNEL(loss, linear_cross_entropy_sums, LinearCrossEntropy)
PF_KERNEL(loss, linear_cross_entropy_losses, LinearCrossEntropy)
PF_KERNEL(loss, linear_cross_entropy_gradients, LinearCrossEntropy)
PF_KERNEL(loss, loss_scale, LossScale)

namespace {

void read_of(Reader& r, CrossEntropy* p) {
  p->x = r.address("x");
  p->targets = r.address<const int64_t>("targets");
  p->probabilities = r.address("probabilities");
  p->weight = r.address("weight");
  p->outer = r.size("outer");
  p->n = r.size("n");
  p->inner = r.size("inner");
  p->x_outer_stride = r.size("x_outer_stride");
  p->x_step = r.size("x_step");
  p->ignore_index = r.integer("ignore_index");
  p->smoothing = r.number("smoothing");
  p->reduction = r.member<Reduction>("reduction", kReductions);
  p->dtype = r.member<Dtype>("dtype", kDtypes);
  p->loss_dtype = r.member<Dtype>("loss_dtype", kDtypes);
}

CrossEntropyFwd read_fwd(const py::tuple& problem, const char* operation) {
  Reader r(problem, operation, "problem");
  CrossEntropyFwd p;
  read_of(r, &p.of);
  p.loss = r.address<void>("loss");
  p.tops = r.address<void>("tops");
  p.logs = r.address<void>("logs");
  p.total = r.address<void>("total");
  p.chunks = r.address<void>("chunks");
  r.done();
  return p;
}

CrossEntropyBwd read_bwd(const py::tuple& problem, const char* operation) {
  Reader r(problem, operation, "problem");
  CrossEntropyBwd p;
  read_of(r, &p.of);
  p.dloss = r.address("dloss");
  p.tops = r.address("tops");
  p.logs = r.address("logs");
  p.total = r.address("total");
  p.dx = r.address<void>("dx");
  p.dprobabilities = r.address<void>("dprobabilities");
  r.done();
  return p;
}

LinearCrossEntropy read_block(const py::tuple& problem, const char* operation) {
  Reader r(problem, operation, "problem");
  LinearCrossEntropy p;
  read_of(r, &p.of);
  p.first = r.size("first");
  p.classes = r.size("classes");
  p.sums = r.address<RowSums>("sums");
  p.loss = r.address<void>("loss");
  p.tops = r.address<void>("tops");
  p.logs = r.address<void>("logs");
  p.total = r.address<void>("total");
  p.sum = r.address<double>("sum");
  p.dloss = r.address("dloss");
  r.done();
  return p;
}

}  // namespace

// The tuples that ops/loss/_cpu_cross_entropy.py makes. nll_loss has neither probabilities nor smoothing, tops nor
// logs.
PF_BINDINGS(m) {
  m.def("cross_entropy_chunks", cross_entropy_chunks);
  m.def("nll_loss_chunks", nll_loss_chunks);
  m.def("cross_entropy_fwd", [](const py::tuple& problem, int num_threads) {
    launch(loss::cross_entropy_fwd, read_fwd(problem, "cross_entropy_fwd"), num_threads);
  });
  m.def("cross_entropy_bwd", [](const py::tuple& problem, int num_threads) {
    launch(loss::cross_entropy_bwd, read_bwd(problem, "cross_entropy_bwd"), num_threads);
  });
  m.def("nll_loss_fwd", [](const py::tuple& problem, int num_threads) {
    launch(loss::nll_loss_fwd, read_fwd(problem, "nll_loss_fwd"), num_threads);
  });
  m.def("nll_loss_bwd", [](const py::tuple& problem, int num_threads) {
    launch(loss::nll_loss_bwd, read_bwd(problem, "nll_loss_bwd"), num_threads);
  });
  m.attr("ROW_SUMS_BYTES") = sizeof(RowSums);
  m.def("linear_cross_entropy_begin", [](const py::tuple& problem, int num_threads) {
    launch(loss::linear_cross_entropy_begin, read_block(problem, "linear_cross_entropy_begin"), num_threads);
  });
  m.def("linear_cross_entropy_sums", [](const py::tuple& problem, int num_threads) {
    launch(loss::linear_cross_entropy_sums, read_block(problem, "linear_cross_entropy_sums"), num_threads);
  });
  m.def("linear_cross_entropy_losses", [](const py::tuple& problem, int num_threads) {
    launch(loss::linear_cross_entropy_losses, read_block(problem, "linear_cross_entropy_losses"), num_threads);
  });
  m.def("linear_cross_entropy_gradients", [](const py::tuple& problem, int num_threads) {
    launch(loss::linear_cross_entropy_gradients, read_block(problem, "linear_cross_entropy_gradients"), num_threads);
  });
  m.def("loss_scale", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "loss_scale", "problem");
    LossScale p;
    p.x = r.address<void>("x");
    p.count = r.size("count");
    p.by = r.number("by");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(loss::loss_scale, p, num_threads);
  });
}
