#include "../common/conv.h"

#include <pybind11/stl.h>

#include "activation.h"
#include "fingerprints.h"
#include "reader.h"

PF_KERNEL(conv, fwd, Conv)
PF_KERNEL(conv, fwd_sizes, ConvSizes)
PF_KERNEL(conv, input_grad, Conv)
PF_KERNEL(conv, input_grad_sizes, ConvSizes)
PF_KERNEL(conv, weight_grad, Conv)
PF_KERNEL(conv, weight_grad_sizes, ConvSizes)

namespace {

ConvStrides read_strides(Reader& r, const char* field) {
  const auto strides = r.sizes<2 + kConvDims>(field);
  return {strides[0], strides[1], {strides[2], strides[3], strides[4]}};
}

ConvAxis read_axis(Reader& r, const char* field) {
  const auto axis = r.sizes<5>(field);
  return {axis[0], axis[1], axis[2], axis[3], axis[4], r.integer("padding")};
}

// All but the addresses: what the workspace depends on.
void read_problem(Reader& r, Conv& p) {
  p.x_stride = read_strides(r, "x_stride");
  p.weight_stride = read_strides(r, "weight_stride");
  p.y_stride = read_strides(r, "y_stride");
  p.shape.batch = r.size("batch");
  p.shape.groups = r.size("groups");
  p.shape.in_channels = r.size("in_channels");
  p.shape.out_channels = r.size("out_channels");
  p.shape.axes[0] = read_axis(r, "depth");
  p.shape.axes[1] = read_axis(r, "height");
  p.shape.axes[2] = read_axis(r, "width");
  p.has_style = r.flag("has_style");
  p.algorithm = r.member<ConvAlgorithm>("algorithm", kConvAlgorithms);
  p.dtype = r.member<Dtype>("dtype", kDtypes);
  r.done();
}

void define_operation(py::module_& m, const char* name, const char* sizes_name, const Kernel<Conv>& kernel,
                      const Kernel<ConvSizes>& sizes) {
  // (bytes of the packed weight, bytes of the workspace) of the operation with this problem and number of threads.
  m.def(sizes_name, [sizes_name, &sizes](const py::tuple& problem, int num_threads) {
    Reader r(problem, sizes_name, "problem");
    int64_t packed_bytes = 0, workspace_bytes = 0;
    Conv p{};
    read_problem(r, p);
    call(sizes, {p, &packed_bytes, &workspace_bytes}, num_threads);
    return py::make_tuple(packed_bytes, workspace_bytes);
  });
  m.def(name, [name, &kernel](const py::tuple& tensors, const py::tuple& problem, int num_threads) {
    Reader t(tensors, name, "tensors"), r(problem, name, "problem");
    Conv p;
    p.x = t.address<void>("x");
    p.weight = t.address<void>("weight");
    p.y = t.address<void>("y");
    p.scale = t.address("scale");
    p.bias = t.address("bias");
    p.residual = t.address("residual");
    p.preact = t.address<void>("preact");
    p.packed = t.address<void>("packed");
    p.is_packed = t.flag("is_packed");
    p.workspace = t.address<void>("workspace");
    p.activation = read_activation(t, -1);
    p.style.style = t.address("style");
    p.style.noise = t.address("noise");
    p.style.noise_step = t.size("noise_step");
    p.style.gain = t.number("gain");
    p.style.clamp = t.number("clamp");
    t.done();
    read_problem(r, p);
    launch(kernel, p, num_threads);
  });
}

}  // namespace

// The tuples that ops/conv/_cpu.py makes.
PF_BINDINGS(m) {
  py::class_<Fingerprints>(m, "Fingerprints")
      .def(py::init<std::vector<Matrix>, int>(), py::call_guard<py::gil_scoped_release>())
      .def("is_current", &Fingerprints::is_current, py::call_guard<py::gil_scoped_release>());
  define_operation(m, "conv_fwd", "conv_fwd_sizes", conv::fwd, conv::fwd_sizes);
  define_operation(m, "conv_input_grad", "conv_input_grad_sizes", conv::input_grad, conv::input_grad_sizes);
  define_operation(m, "conv_weight_grad", "conv_weight_grad_sizes", conv::weight_grad, conv::weight_grad_sizes);
}
