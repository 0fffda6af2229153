#include "../common/spectral.h"

#include <vector>

#include "bindings.h"
#include "reader.h"

PF_KERNEL(norm, spectral_sigma, SpectralSigma)
PF_KERNEL(norm, spectral_scale, SpectralScale)

namespace {

SpectralMatrix matrix_of(Reader& r) {
  SpectralMatrix of;
  of.weight = r.address("weight");
  of.outer = r.size("outer");
  of.rows = r.size("rows");
  of.inner = r.size("inner");
  return of;
}

std::vector<SpectralLayer> layers_of(const py::list& from, const char* operation) {
  std::vector<SpectralLayer> layers;
  for (const py::handle& each : from) {
    Reader r(each, operation, "layer");
    SpectralLayer p;
    p.of = matrix_of(r);
    p.u = r.address("u");
    p.v = r.address("v");
    p.next_u = r.address<void>("next_u");
    p.next_v = r.address<void>("next_v");
    p.sigma = r.address<void>("sigma");
    p.iterations = r.size("iterations");
    p.eps = r.number("eps");
    r.done();
    layers.push_back(p);
  }
  return layers;
}

}  // namespace

// The tuples that ops/norm/_cpu_spectral.py makes.
PF_BINDINGS(m) {
  m.def("spectral_sigma_workspace", [](const py::list& of) {
    int64_t elements = 0;
    for (const SpectralLayer& layer : layers_of(of, "spectral_sigma_workspace"))
      elements += spectral_elements(layer.of);
    return elements;
  });
  m.def("spectral_sigma", [](const py::list& of, const py::tuple& problem, int num_threads) {
    const std::vector<SpectralLayer> layers = layers_of(of, "spectral_sigma");
    Reader r(problem, "spectral_sigma", "problem");
    SpectralSigma p;
    p.layers = layers.data();
    p.count = (int64_t)layers.size();
    p.workspace = r.address<void>("workspace");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(norm::spectral_sigma, p, num_threads);
  });
  m.def("spectral_scale_workspace", [](int64_t outer, int64_t rows, int64_t inner) {
    return spectral_scale_blocks({nullptr, outer, rows, inner});
  });
  m.def("spectral_scale", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "spectral_scale", "problem");
    SpectralScale p;
    p.of = matrix_of(r);
    p.dy = r.address("dy");
    p.u = r.address("u");
    p.v = r.address("v");
    p.sigma = r.address("sigma");
    p.to = r.address<void>("to");
    p.workspace = r.address<void>("workspace");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(norm::spectral_scale, p, num_threads);
  });
}
