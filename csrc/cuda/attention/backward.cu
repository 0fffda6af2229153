// Compiled by nvcc for GPUs, and by a C++ compiler for host/.
#include "mask_gradient.h"
