// Everything that is compiled once per instruction set. isa/<isa>.cpp defines PF_ISA and PF_VECTOR_BYTES and includes
// this. Only C headers here, and everything of ours inside namespace PF_ISA: no symbol may be shared between
// instruction sets.
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernel_table.h"

#define PF_STRING_(x) #x
#define PF_STRING(x) PF_STRING_(x)

namespace PF_ISA {

#include "simd/vec.h"
#include "simd/transpose.h"
#include "simd/operand.h"
#include "simd/math.h"
#include "simd/philox.h"
#include "../common/activations.inc"
#include "core/memory.h"
#include "core/parallel.h"

#include "core/peak.h"
#include "core/fingerprint.h"
#include "activation.h"
#include "gemm.h"
#include "linear.h"
#include "layer_norm.h"
#include "dropout.h"
#include "attention.h"
#include "rnn.h"

extern const KernelTable table;
const KernelTable table = {
    PF_STRING(PF_ISA),
    PF_VECTOR_BYTES,
#define KERNEL(name, Params) name,
#include "kernels.inc"
#undef KERNEL
};

}  // namespace PF_ISA
