// The table of activations (tools/generate.py), for kernels that apply one to what they have just computed.
#pragma once
#include "../../common/activation.h"
#include "../simd/math.h"

#define PF_MEMBER inline __attribute__((always_inline))

namespace PF_ISA::pointwise {

#include "../../common/activations.inc"

}  // namespace PF_ISA::pointwise
