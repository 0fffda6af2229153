#include "../common/pool.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(pool, max_pool_fwd, MaxPoolFwd)
PF_KERNEL(pool, max_pool_bwd, MaxPoolBwd)
PF_KERNEL(pool, avg_pool_fwd, AvgPool)
PF_KERNEL(pool, avg_pool_bwd, AvgPool)
PF_KERNEL(pool, max_unpool_fwd, MaxUnpool)
PF_KERNEL(pool, max_unpool_bwd, MaxUnpool)

namespace {

PoolAxis read_axis(Reader& r, const char* field) {
  const auto axis = r.sizes<6>(field);
  return {axis[0], axis[1], axis[2], axis[3], axis[4], axis[5]};
}

PoolShape read_shape(Reader& r) {
  PoolShape shape;
  shape.outer = r.size("outer");
  shape.inner = r.size("inner");
  shape.depth = read_axis(r, "depth");
  shape.height = read_axis(r, "height");
  shape.width = read_axis(r, "width");
  return shape;
}

void avg_pool(const Kernel<AvgPool>& kernel, const char* operation, const py::tuple& problem, int num_threads) {
  Reader r(problem, operation, "problem");
  AvgPool p;
  p.from = r.address("from");
  p.to = r.address<void>("to");
  p.shape = read_shape(r);
  p.counts_padding = r.flag("counts_padding");
  p.divisor = r.integer("divisor");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  launch(kernel, p, num_threads);
}

// A place whose index is out of range, or -1.
int64_t max_unpool(const Kernel<MaxUnpool>& kernel, const char* operation, const py::tuple& problem, int num_threads) {
  Reader r(problem, operation, "problem");
  int64_t wrong = -1;
  MaxUnpool p;
  p.from = r.address("from");
  p.indices = r.address<const int64_t>("indices");
  p.to = r.address<void>("to");
  p.outer = r.size("outer");
  p.inner = r.size("inner");
  p.inputs = r.size("inputs");
  p.outputs = r.size("outputs");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  p.wrong = &wrong;
  r.done();
  launch(kernel, p, num_threads);
  return wrong;
}

}  // namespace

// The tuples that ops/pool/_cpu.py makes.
PF_BINDINGS(m) {
  m.def("max_pool_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "max_pool_fwd", "problem");
    MaxPoolFwd p;
    p.x = r.address("x");
    p.y = r.address<void>("y");
    p.indices = r.address<void>("indices");
    p.shape = read_shape(r);
    p.index = r.member<PoolIndex>("index", kPoolIndices);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pool::max_pool_fwd, p, num_threads);
  });
  m.def("max_pool_bwd_workspace", [](const py::tuple& problem) {  // bytes for each thread
    Reader r(problem, "max_pool_bwd_workspace", "problem");
    const PoolShape shape = read_shape(r);
    const Dtype dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    return max_pool_bwd_workspace(shape, dtype);
  });
  m.def("max_pool_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "max_pool_bwd", "problem");
    MaxPoolBwd p;
    p.dy = r.address("dy");
    p.indices = r.address("indices");
    p.dx = r.address<void>("dx");
    p.workspace = r.address<void>("workspace");
    p.shape = read_shape(r);
    p.index = r.member<PoolIndex>("index", kPoolIndices, 1);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pool::max_pool_bwd, p, num_threads);
  });
  m.def("avg_pool_fwd", [](const py::tuple& problem, int num_threads) {
    avg_pool(pool::avg_pool_fwd, "avg_pool_fwd", problem, num_threads);
  });
  m.def("avg_pool_bwd", [](const py::tuple& problem, int num_threads) {
    avg_pool(pool::avg_pool_bwd, "avg_pool_bwd", problem, num_threads);
  });
  m.def("max_unpool_fwd", [](const py::tuple& problem, int num_threads) {
    return max_unpool(pool::max_unpool_fwd, "max_unpool_fwd", problem, num_threads);
  });
  m.def("max_unpool_bwd", [](const py::tuple& problem, int num_threads) {
    return max_unpool(pool::max_unpool_bwd, "max_unpool_bwd", problem, num_threads);
  });
}
