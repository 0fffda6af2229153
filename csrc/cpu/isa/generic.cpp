#define PF_ISA generic
#define PF_VECTOR_BYTES 16
#include "../all_kernels.h"
