#include "../common/row_loss.h"

#include "bindings.h"
#include "reader.h"

PF_KERNEL(loss, row_loss_fwd, RowLossFwd)
PF_KERNEL(loss, row_loss_bwd, RowLossBwd)

namespace {

void read_of(Reader& r, RowLoss* p) {
  const char* const rows[] = {"first", "second", "third"};
  const char* const strides[] = {"first stride", "second stride", "third stride"};
  for (int k = 0; k < kRowLossTensors; k++) p->rows[k] = r.address(rows[k]);
  for (int k = 0; k < kRowLossTensors; k++) p->strides[k] = r.size(strides[k]);
  p->target = r.address("target");
  p->n = r.size("n");
  p->columns = r.size("columns");
  p->kind = r.member<RowLossKind>("kind", kRowLossKinds);
  p->margin = r.number("margin");
  p->eps = r.number("eps");
  p->is_squared = r.flag("is_squared");
  p->is_swapped = r.flag("is_swapped");
  p->is_reduced = r.flag("is_reduced");
  p->dtype = r.member<Dtype>("dtype", kDtypes);
  p->loss_dtype = r.member<Dtype>("loss_dtype", kDtypes);
}

}  // namespace

// The tuples that ops/loss/_cpu_row_loss.py makes.
PF_BINDINGS(m) {
  m.attr("ROW_LOSSES") = py::make_tuple("cosine_embedding", "triplet_margin");
  m.attr("ROW_LOSS_SUMS") = kRowLossSums;
  m.def("row_loss_chunks", row_loss_chunks);
  m.def("row_loss_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "row_loss_fwd", "problem");
    RowLossFwd p;
    read_of(r, &p.of);
    p.loss = r.address<void>("loss");
    p.sums = r.address<double>("sums");
    p.chunks = r.address<double>("chunks");
    p.divisor = r.number("divisor");
    r.done();
    launch(loss::row_loss_fwd, p, num_threads);
  });
  m.def("row_loss_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "row_loss_bwd", "problem");
    RowLossBwd p;
    read_of(r, &p.of);
    p.dloss = r.address("dloss");
    p.sums = r.address<const double>("sums");
    p.divisor = r.number("divisor");
    const char* const gradients[] = {"first gradient", "second gradient", "third gradient"};
    for (int k = 0; k < kRowLossTensors; k++) p.gradients[k] = r.address<void>(gradients[k]);
    r.done();
    launch(loss::row_loss_bwd, p, num_threads);
  });
}
