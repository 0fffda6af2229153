#include "../common/norm.h"
#include "bindings.h"

PF_KERNEL(norm, layer_norm_fwd, LayerNormFwd)
PF_KERNEL(norm, layer_norm_bwd, LayerNormBwd)

PF_BINDINGS(m) {
  m.def("layer_norm_fwd", [](Address x, Address residual, Address weight, Address bias, Address y, Address summed,
                             Address mean, Address rstd, int64_t rows, int64_t cols, int64_t x_row_stride,
                             int64_t residual_row_stride, double eps, int dtype, int num_threads) {
    launch(norm::layer_norm_fwd,
           {at<void>(x), at<void>(residual), at<void>(weight), at<void>(bias), at<void>(y), at<void>(summed),
            at<void>(mean), at<void>(rstd), rows, cols, x_row_stride, residual_row_stride, eps, (Dtype)dtype},
           num_threads);
  });
  m.def("layer_norm_bwd_workspace",
        [](int64_t rows, int64_t cols) { return layer_norm_bwd_blocks(rows, cols) * 2 * cols; });
  m.def("layer_norm_bwd",
        [](Address dy, Address dsummed, Address x, Address weight, Address mean, Address rstd, Address dx,
           Address dweight, Address dbias, Address workspace, int64_t rows, int64_t cols, int64_t dy_row_stride,
           int64_t dsummed_row_stride, int64_t x_row_stride, int dtype, int num_threads) {
          launch(norm::layer_norm_bwd,
                 {at<void>(dy), at<void>(dsummed), at<void>(x), at<void>(weight), at<void>(mean), at<void>(rstd),
                  at<void>(dx), at<void>(dweight), at<void>(dbias), at<void>(workspace), rows, cols, dy_row_stride,
                  dsummed_row_stride, x_row_stride, (Dtype)dtype},
                 num_threads);
        });
}
