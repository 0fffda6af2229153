#include "gan.h"

#include "bindings.h"

PF_KERNEL(gan, upfirdn2d, Upfirdn2d)
PF_KERNEL(gan, filtered_lrelu, FilteredLrelu)

namespace {

FilteredLrelu read_filtered_lrelu(const py::tuple& problem, const char* operation) {
  Reader r(problem, operation, "problem");
  FilteredLrelu p;
  p.x = r.address("x");
  p.bias = r.address("bias");
  p.v = r.address("v");
  p.y = r.address<void>("y");
  p.up = read_filter(r);
  p.of_v = read_filter(r);
  p.down = read_filter(r);
  p.outer = r.size("outer");
  p.inner = r.size("inner");
  p.channels = r.size("channels");
  p.gain = r.number("gain");
  p.slope = r.number("slope");
  p.clamp = r.number("clamp");
  p.workspace = r.address<void>("workspace");
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
  return p;
}

int64_t itemsize(Dtype dtype) { return dtype == Dtype::f64 ? 8 : 4; }

}  // namespace

// The tuples that ops/gan/_cpu.py makes.
PF_BINDINGS(m) {
  m.attr("GAN_MOST_TAPS") = kGanMostTaps;
  m.attr("GAN_MOST_STEP") = kGanMostStep;
  m.def("upfirdn2d_workspace", [](const py::tuple& problem, int num_threads) {
    const Upfirdn2d p = read_upfirdn2d(problem, "upfirdn2d_workspace");
    return upfirdn2d_workspace(p, itemsize(p.dtype), num_threads);
  });
  m.def("upfirdn2d", [](const py::tuple& problem, int num_threads) {
    launch(gan::upfirdn2d, read_upfirdn2d(problem), num_threads);
  });
  m.def("filtered_lrelu_workspace", [](const py::tuple& problem, int num_threads) {
    const FilteredLrelu p = read_filtered_lrelu(problem, "filtered_lrelu_workspace");
    return filtered_lrelu_workspace(p, itemsize(p.dtype), num_threads);
  });
  m.def("filtered_lrelu", [](const py::tuple& problem, int num_threads) {
    launch(gan::filtered_lrelu, read_filtered_lrelu(problem, "filtered_lrelu"), num_threads);
  });
}
