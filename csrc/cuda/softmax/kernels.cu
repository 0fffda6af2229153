// Compiled by nvcc for GPUs, and by a C++ compiler for host/.
#include "softmax.h"
