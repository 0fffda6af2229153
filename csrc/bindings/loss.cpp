#include "../common/loss.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(loss, loss_sums, LossSums)
PF_KERNEL(loss, loss_gradients, LossGradients)

namespace {

void read_parts(Reader& r, LossPart* parts) {
  for (int i = 0; i < kLossParts; i++) {
    LossPart& p = parts[i];
    p.x = r.address("x");
    p.dd = r.address("dd");
    p.to = r.address<void>("to");
    p.n = r.size("n");
    p.term = r.member<LossTerm>("term", kLossTerms);
    p.scale = r.number("scale");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
  }
}

}  // namespace

// The tuples that ops/loss/_cpu.py makes.
PF_BINDINGS(m) {
  m.attr("LOSS_TERMS") = py::make_tuple("softplus", "softplus_negative", "hinge_below", "hinge_above", "value",
                                        "half_square_to_one", "half_square", "minus_softplus", "minus_value");
  m.def("loss_chunks", loss_chunks);
  m.def("loss_sums", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "loss_sums", "problem");
    LossSums p;
    read_parts(r, p.parts);
    p.workspace = r.address<void>("workspace");
    p.result = r.address<void>("result");
    p.result_dtype = r.member<Dtype>("result_dtype", kDtypes);
    r.done();
    launch(loss::loss_sums, p, num_threads);
  });
  m.def("loss_gradients", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "loss_gradients", "problem");
    LossGradients p;
    read_parts(r, p.parts);
    p.dy = r.address("dy");
    p.dy_dtype = r.member<Dtype>("dy_dtype", kDtypes);
    r.done();
    launch(loss::loss_gradients, p, num_threads);
  });
}
