#define PF_ISA avx512_bf16
#define PF_VECTOR_BYTES 64
#define PF_HAS_BF16_DOT 1
#include "../all_kernels.h"
