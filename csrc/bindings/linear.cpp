#include "bindings.h"

void bind_linear(py::module_& m) {
  // (packed bytes, workspace bytes) of linear_fwd with the same sizes and number of threads
  m.def("linear_sizes", [](int64_t M, int64_t n, int64_t k, int64_t x_column_stride, int64_t weight_column_stride,
                           bool is_packed, int dtype, int num_threads) {
    int64_t packed_bytes = 0, workspace_bytes = 0;
    LinearFwd fwd{};
    fwd.x_column_stride = x_column_stride, fwd.weight_column_stride = weight_column_stride;
    fwd.packed = is_packed ? &fwd : nullptr;
    fwd.m = M, fwd.n = n, fwd.k = k, fwd.dtype = (Dtype)dtype;
    kernels().linear_sizes({fwd, &packed_bytes, &workspace_bytes}, allowed_threads(num_threads));
    return py::make_tuple(packed_bytes, workspace_bytes);
  });
  m.def("linear_pack", [](Address weight, int64_t row_stride, int64_t column_stride, Address packed, int64_t n,
                          int64_t k, int dtype, int num_threads) {
    launch(&KernelTable::linear_pack,
           {at<void>(weight), row_stride, column_stride, at<void>(packed), n, k, (Dtype)dtype}, num_threads);
  });
  m.def("linear_fwd", [](Address x, int64_t x_row_stride, int64_t x_column_stride, Address weight,
                         int64_t weight_row_stride, int64_t weight_column_stride, Address packed, Address bias,
                         int64_t bias_row_stride, Address y, Address preact, Address workspace, int64_t M, int64_t n,
                         int64_t k, int activation, int dtype, int num_threads) {
    launch(&KernelTable::linear_fwd,
           {at<void>(x), x_row_stride, x_column_stride, at<void>(weight), weight_row_stride, weight_column_stride,
            at<void>(packed), at<void>(bias), bias_row_stride, at<void>(y), at<void>(preact), at<void>(workspace), M, n,
            k, activation, (Dtype)dtype},
           num_threads);
  });
  m.def("fingerprint", [](Address data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
                          int64_t samples, int dtype) {
    uint64_t hash = 0;
    kernels().fingerprint(
        {at<void>(data), rows, columns, row_stride, column_stride, samples, (Dtype)dtype, &hash, nullptr, false}, 1);
    return hash;
  });
}
