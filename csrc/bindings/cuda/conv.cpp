#include "../conv.h"

#include "../../common/depthwise.h"
#include "launch.h"

PF_CUDA_KERNEL(conv, fwd, Conv)
PF_CUDA_KERNEL(conv, input_grad, Conv)
PF_CUDA_KERNEL(conv, weight_grad, Conv)

namespace {

void define_operation(py::module_& m, const char* name, pf::cuda::Status (*kernel)(const Conv&, void*)) {
  m.def(name, [name, kernel](const py::tuple& both, int device, Address stream) {
    if (both.size() != 2) throw py::type_error(std::string("pyflash." PF_MODULE ".") + name + ": expected two tuples");
    launch(name, kernel, read_conv(name, both[0], both[1]), device, stream);
  });
}

}  // namespace

PF_BINDINGS(m) {
  // Bytes of the workspace of the weight's gradient, of a problem.
  m.def("conv_weight_grad_workspace", [](const py::tuple& problem) {
    Reader r(problem, "conv_weight_grad_workspace", "problem");
    Conv p{};
    read_problem(r, p);
    return depthwise_workspace(p, p.dtype == Dtype::f64 ? 8 : 4);
  });
  define_operation(m, "conv_fwd", pf::cuda::conv::fwd);
  define_operation(m, "conv_input_grad", pf::cuda::conv::input_grad);
  define_operation(m, "conv_weight_grad", pf::cuda::conv::weight_grad);
}
