#include "../pointwise.h"

#include "launch.h"

PF_CUDA_KERNEL(pointwise, activation_fwd, ActivationFwd)
PF_CUDA_KERNEL(pointwise, activation_bwd, ActivationBwd)
PF_CUDA_KERNEL(pointwise, activation_bwd_bwd, ActivationBwdBwd)

PF_BINDINGS(m) {
  PF_CUDA_DEF(m, pointwise, activation_fwd);
  PF_CUDA_DEF(m, pointwise, activation_bwd);
  PF_CUDA_DEF(m, pointwise, activation_bwd_bwd);
}
