// Compiled by nvcc for GPUs, and by a C++ compiler for host/.
#include "layer_norm.h"
