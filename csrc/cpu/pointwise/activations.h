// The table of activations (tools/generate.py), for kernels that apply one to what they have just computed.
#pragma once
#include "../simd/math.h"

namespace PF_ISA::pointwise {

#include "../../common/activations.inc"

}  // namespace PF_ISA::pointwise
