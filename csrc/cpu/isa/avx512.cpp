#define PF_ISA avx512
#define PF_VECTOR_BYTES 64
#include "../all_kernels.h"
