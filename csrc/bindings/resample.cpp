#include "../common/resample.h"

#include "bindings.h"
#include "reader.h"

PF_KERNEL(resample, resample, Resample)

// The tuples that ops/resample/_cpu.py makes.
PF_BINDINGS(m) {
  m.attr("RESAMPLE_FOLD") = kResampleFold;
  m.def("resample_workspace", &resample_workspace);
  m.def("resample", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "resample", "problem");
    Resample p;
    p.x = r.address("x");
    p.y = r.address<void>("y");
    for (ResampleAxis& axis : p.axis) {
      axis.first = r.address<const int32_t>("first");
      axis.index = r.address<const int32_t>("index");
      axis.weight = r.address("weight");
      axis.in = r.size("in");
      axis.out = r.size("out");
      axis.taps = r.size("taps");
    }
    p.outer = r.size("outer");
    p.inner = r.size("inner");
    p.fill = r.number("fill");
    p.workspace = r.address<void>("workspace");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(resample::resample, p, num_threads);
  });
}
