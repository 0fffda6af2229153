#include "../common/linear.h"
#include "bindings.h"

PF_KERNEL(linear, fwd, LinearFwd)
PF_KERNEL(linear, sizes, LinearSizes)

PF_BINDINGS(m) {
  // Bytes of the workspace of linear_fwd with the same sizes and number of threads.
  m.def("linear_sizes", [](int64_t M, int64_t n, int64_t k, int64_t x_column_stride, int64_t weight_column_stride,
                           int dtype, int num_threads) {
    int64_t workspace_bytes = 0;
    LinearFwd fwd{};
    fwd.x_column_stride = x_column_stride, fwd.weight_column_stride = weight_column_stride;
    fwd.m = M, fwd.n = n, fwd.k = k, fwd.dtype = (Dtype)dtype;
    call(linear::sizes, {fwd, &workspace_bytes}, num_threads);
    return workspace_bytes;
  });
  m.def("linear_fwd", [](Address x, int64_t x_row_stride, int64_t x_column_stride, Address weight,
                         int64_t weight_row_stride, int64_t weight_column_stride, Address bias, int64_t bias_row_stride,
                         Address y, Address preact, Address workspace, int64_t M, int64_t n, int64_t k, int activation,
                         double first, double second, int dtype, int num_threads) {
    launch(linear::fwd,
           {at<void>(x),
            x_row_stride,
            x_column_stride,
            at<void>(weight),
            weight_row_stride,
            weight_column_stride,
            at<void>(bias),
            bias_row_stride,
            at<void>(y),
            at<void>(preact),
            at<void>(workspace),
            M,
            n,
            k,
            {activation, first, second},
            (Dtype)dtype},
           num_threads);
  });
}
