#include "../common/linear.h"
#include "activation.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(linear, fwd, LinearFwd)
PF_KERNEL(linear, sums, LinearFwd)
PF_KERNEL(linear, sizes, LinearSizes)

namespace {

LinearFwd read_fwd(const py::tuple& problem, const char* operation) {
  Reader r(problem, operation, "problem");
  LinearFwd p;
  p.x = r.address("x");
  p.x_row_stride = r.size("x_row_stride");
  p.x_column_stride = r.size("x_column_stride");
  p.weight = r.address("weight");
  p.weight_row_stride = r.size("weight_row_stride");
  p.weight_column_stride = r.size("weight_column_stride");
  p.bias = r.address("bias");
  p.bias_row_stride = r.size("bias_row_stride");
  p.y = r.address<void>("y");
  p.preact = r.address<void>("preact");
  p.workspace = r.address<void>("workspace");
  p.m = r.size("m");
  p.n = r.size("n");
  p.k = r.size("k");
  p.activation = read_activation(r, -1);
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}

}  // namespace

// The tuples that ops/linear/_cpu.py makes: `problem` is all of a LinearFwd, `shape` what its workspace depends on.
PF_BINDINGS(m) {
  // Bytes of the workspace of linear_fwd with the same fields and number of threads.
  m.def("linear_sizes", [](const py::tuple& shape, int num_threads) {
    Reader r(shape, "linear_sizes", "shape");
    int64_t workspace_bytes = 0;
    LinearFwd p{};
    p.x_row_stride = r.size("x_row_stride");
    p.x_column_stride = r.size("x_column_stride");
    p.weight_row_stride = r.size("weight_row_stride");
    p.weight_column_stride = r.size("weight_column_stride");
    p.m = r.size("m");
    p.n = r.size("n");
    p.k = r.size("k");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    call(linear::sizes, {p, &workspace_bytes}, num_threads);
    return workspace_bytes;
  });
  m.def("linear_fwd", [](const py::tuple& problem, int num_threads) {
    launch(linear::fwd, read_fwd(problem, "linear_fwd"), num_threads);
  });
  m.def("linear_sums", [](const py::tuple& problem, int num_threads) {
    launch(linear::sums, read_fwd(problem, "linear_sums"), num_threads);
  });
}
