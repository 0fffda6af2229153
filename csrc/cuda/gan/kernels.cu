// Compiled by nvcc for GPUs, and by a C++ compiler for host/.
#include "upfirdn2d.h"
