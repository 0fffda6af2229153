// Compiled by nvcc for GPUs, and by a C++ compiler for host/.
#include "depthwise.h"
#include "weight_grad.h"
