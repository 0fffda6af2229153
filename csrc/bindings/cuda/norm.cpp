#include "../norm.h"

#include "launch.h"

PF_CUDA_KERNEL(norm, layer_norm_fwd, LayerNormFwd)
PF_CUDA_KERNEL(norm, layer_norm_bwd, LayerNormBwd)

PF_BINDINGS(m) {
  m.def("layer_norm_bwd_workspace",
        [](int64_t rows, int64_t cols) { return layer_norm_bwd_blocks(rows, cols) * 2 * cols; });
  PF_CUDA_DEF(m, norm, layer_norm_fwd);
  PF_CUDA_DEF(m, norm, layer_norm_bwd);
}
