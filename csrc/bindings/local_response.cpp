#include "../common/local_response.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(norm, local_response, LocalResponse)

// The tuple that ops/norm/_cpu_local_response.py makes.
PF_BINDINGS(m) {
  m.def("local_response_workspace", local_response_workspace);
  m.def("local_response", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "local_response", "problem");
    LocalResponse p;
    p.x = r.address("x");
    p.dy = r.address("dy");
    p.to = r.address<void>("to");
    p.workspace = r.address<void>("workspace");
    p.batch = r.size("batch");
    p.channels = r.size("channels");
    p.positions = r.size("positions");
    p.is_last = r.flag("is_last");
    p.before = r.size("before");
    p.after = r.size("after");
    p.scale = r.number("scale");
    p.beta = r.number("beta");
    p.k = r.number("k");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(norm::local_response, p, num_threads);
  });
}
