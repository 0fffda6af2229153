#include "../common/elementwise_loss.h"

#include "bindings.h"
#include "reader.h"

PF_KERNEL(loss, elementwise_loss_fwd, ElementwiseLossFwd)
PF_KERNEL(loss, elementwise_loss_bwd, ElementwiseLossBwd)

namespace {

void read_factors(Reader& r, const char* name, Factors* p) {
  p->values = r.address(name);
  p->count = r.size("count");
  p->inner = r.size("inner");
  p->dtype = r.member<Dtype>("dtype of factors", kDtypes);
}

void read_of(Reader& r, ElementwiseLoss* p) {
  p->x = r.address("x");
  p->target = r.address("target");
  read_factors(r, "weight", &p->weight);
  read_factors(r, "pos_weight", &p->pos_weight);
  p->n = r.size("n");
  p->row = r.member<int32_t>("row", kLosses);
  p->parameter = r.number("parameter");
  p->is_reduced = r.flag("is_reduced");
  p->dtype = r.member<Dtype>("dtype", kDtypes);
  p->loss_dtype = r.member<Dtype>("loss_dtype", kDtypes);
}

}  // namespace

// The tuples that ops/loss/_cpu_elementwise.py makes.
PF_BINDINGS(m) {
  m.def("elementwise_loss_chunks", elementwise_loss_chunks);
  m.def("elementwise_loss_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "elementwise_loss_fwd", "problem");
    ElementwiseLossFwd p;
    read_of(r, &p.of);
    p.loss = r.address<void>("loss");
    p.total = r.address<void>("total");
    p.chunks = r.address<void>("chunks");
    p.is_weighted = r.flag("is_weighted");
    p.divisor = r.number("divisor");
    r.done();
    launch(loss::elementwise_loss_fwd, p, num_threads);
  });
  m.def("elementwise_loss_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "elementwise_loss_bwd", "problem");
    ElementwiseLossBwd p;
    read_of(r, &p.of);
    p.dloss = r.address("dloss");
    p.total = r.address("total");
    p.dx = r.address<void>("dx");
    p.dtarget = r.address<void>("dtarget");
    r.done();
    launch(loss::elementwise_loss_bwd, p, num_threads);
  });
}
