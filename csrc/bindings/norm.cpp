#include "norm.h"

#include "bindings.h"

PF_KERNEL(norm, layer_norm_fwd, LayerNormFwd)
PF_KERNEL(norm, layer_norm_bwd, LayerNormBwd)

PF_BINDINGS(m) {
  m.def("layer_norm_fwd", [](const py::tuple& problem, int num_threads) {
    launch(norm::layer_norm_fwd, read_layer_norm_fwd(problem), num_threads);
  });
  m.def("layer_norm_bwd_workspace",
        [](int64_t rows, int64_t cols) { return layer_norm_bwd_blocks(rows, cols) * 2 * cols; });
  m.def("layer_norm_bwd", [](const py::tuple& problem, int num_threads) {
    launch(norm::layer_norm_bwd, read_layer_norm_bwd(problem), num_threads);
  });
}
