#include "../common/minibatch_stddev.h"

#include "bindings.h"
#include "reader.h"

PF_KERNEL(gan, minibatch_stddev, MinibatchStddev)

namespace {

MinibatchStddev read(const py::tuple& problem, const char* operation) {
  Reader r(problem, operation, "problem");
  MinibatchStddev p;
  p.x = r.address("x");
  p.v = r.address("v");
  p.dy = r.address("dy");
  p.y = r.address<void>("y");
  p.dx = r.address<void>("dx");
  p.groups = r.size("groups");
  p.group = r.size("group");
  p.rows = r.size("rows");
  p.shares = r.size("shares");
  p.n = r.size("n");
  p.extra = r.size("extra");
  p.eps = r.number("eps");
  p.workspace = r.address<void>("workspace");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}

}  // namespace

// The tuple that ops/gan/_cpu.py makes.
PF_BINDINGS(m) {
  m.def("minibatch_stddev_workspace", [](const py::tuple& problem, int) {
    return minibatch_stddev_workspace(read(problem, "minibatch_stddev_workspace"));
  });
  m.def("minibatch_stddev", [](const py::tuple& problem, int num_threads) {
    launch(gan::minibatch_stddev, read(problem, "minibatch_stddev"), num_threads);
  });
}
