#include "bindings.h"

void bind_activation(py::module_& m) {
  m.def("activation_fwd", [](Address x, Address y, int64_t n, int activation, int dtype, int num_threads) {
    launch(&KernelTable::activation_fwd, {at<void>(x), at<void>(y), n, activation, (Dtype)dtype}, num_threads);
  });
  m.def("activation_bwd",
        [](Address dy, Address saved, Address dx, int64_t n, int activation, int dtype, int num_threads) {
          launch(&KernelTable::activation_bwd,
                 {at<void>(dy), at<void>(saved), at<void>(dx), n, activation, (Dtype)dtype}, num_threads);
        });
}
