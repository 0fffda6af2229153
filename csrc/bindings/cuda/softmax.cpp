#include "../softmax.h"

#include "launch.h"

PF_CUDA_KERNEL(softmax, softmax_fwd, SoftmaxFwd)
PF_CUDA_KERNEL(softmax, softmax_bwd, SoftmaxBwd)

PF_BINDINGS(m) {
  PF_CUDA_DEF(m, softmax, softmax_fwd);
  PF_CUDA_DEF(m, softmax, softmax_bwd);
}
