#include "../gan.h"

#include "launch.h"

PF_CUDA_KERNEL(gan, upfirdn2d, Upfirdn2d)

PF_BINDINGS(m) { PF_CUDA_DEF(m, gan, upfirdn2d); }
