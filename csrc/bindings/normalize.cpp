#include "../common/normalize.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(norm, normalize, Normalize)

// The tuple that ops/norm/_cpu_normalize.py makes.
PF_BINDINGS(m) {
  m.attr("VECTOR_NORMS") = py::make_tuple("one", "two", "most", "mean");
  m.def("normalize", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "normalize", "problem");
    Normalize p;
    p.x = r.address("x");
    p.dy = r.address("dy");
    p.norm = r.address<void>("norm");
    p.to = r.address<void>("to");
    p.outer = r.size("outer");
    p.n = r.size("n");
    p.inner = r.size("inner");
    p.kind = r.member<VectorNorm>("kind", kVectorNorms);
    p.eps = r.number("eps");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(norm::normalize, p, num_threads);
  });
}
