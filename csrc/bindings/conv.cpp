#include "conv.h"

#include <pybind11/stl.h>

#include "fingerprints.h"

PF_KERNEL(conv, fwd, Conv)
PF_KERNEL(conv, fwd_sizes, ConvSizes)
PF_KERNEL(conv, input_grad, Conv)
PF_KERNEL(conv, input_grad_sizes, ConvSizes)
PF_KERNEL(conv, weight_grad, Conv)
PF_KERNEL(conv, weight_grad_sizes, ConvSizes)

namespace {

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
    launch(kernel, read_conv(name, tensors, problem), num_threads);
  });
}

}  // namespace

PF_BINDINGS(m) {
  py::class_<Fingerprints>(m, "Fingerprints")
      .def(py::init<std::vector<Matrix>, int>(), py::call_guard<py::gil_scoped_release>())
      .def("is_current", &Fingerprints::is_current, py::call_guard<py::gil_scoped_release>());
  define_operation(m, "conv_fwd", "conv_fwd_sizes", conv::fwd, conv::fwd_sizes);
  define_operation(m, "conv_input_grad", "conv_input_grad_sizes", conv::input_grad, conv::input_grad_sizes);
  define_operation(m, "conv_weight_grad", "conv_weight_grad_sizes", conv::weight_grad, conv::weight_grad_sizes);
}
