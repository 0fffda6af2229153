// Compiled by nvcc for GPUs, and by a C++ compiler for host/. The derivatives are in backward.cu, which compiles beside
// it.
#include "decode.h"
