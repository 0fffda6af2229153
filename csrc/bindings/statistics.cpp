#include "../common/statistics.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(statistics, tensor_stats, TensorStats)

// The tuple that ops/statistics/_cpu.py makes.
PF_BINDINGS(m) {
  m.attr("MOMENTS") = py::make_tuple("sum", "squares", "zeros", "outside", "not_finite");
  m.def("tensor_stats_parts", tensor_stats_parts);
  m.def("tensor_stats", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "tensor_stats", "problem");
    TensorStats p;
    p.x = r.address("x");
    p.moments = r.address<void>("moments");
    p.outer = r.size("outer");
    p.groups = r.size("groups");
    p.inner = r.size("inner");
    p.low = r.number("low");
    p.high = r.number("high");
    p.workspace = r.address<void>("workspace");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(statistics::tensor_stats, p, num_threads);
  });
}
