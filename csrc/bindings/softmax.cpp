#include "softmax.h"

#include "bindings.h"

PF_KERNEL(softmax, softmax_fwd, SoftmaxFwd)
PF_KERNEL(softmax, softmax_bwd, SoftmaxBwd)

PF_BINDINGS(m) {
  m.attr("SOFTMAX_WORKSPACE") = kSoftmaxKept;  // bytes a thread
  m.def("softmax_fwd", [](const py::tuple& problem, int num_threads) {
    launch(softmax::softmax_fwd, read_softmax_fwd(problem), num_threads);
  });
  m.def("softmax_bwd", [](const py::tuple& problem, int num_threads) {
    launch(softmax::softmax_bwd, read_softmax_bwd(problem), num_threads);
  });
}
