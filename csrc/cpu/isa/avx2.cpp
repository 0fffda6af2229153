#define PF_ISA avx2
#define PF_VECTOR_BYTES 32
#include "../all_kernels.h"
