// Vectors of float as two of double, for sums of squares.
#pragma once
#include "../simd/vec.h"

namespace PF_ISA {

namespace {

PF_INLINE vd widened(vd x, int) { return x; }
// Half the lanes of x as doubles: the square of a float32 below 1e-22 is 0 in float32, and gradients that vanish are
// below; from 2e19 on it is infinite.
PF_INLINE vd widened(vf x, int half) {
  typedef float Half __attribute__((vector_size(PF_VECTOR_BYTES / 2), may_alias));
  union {
    vf whole;
    Half halves[2];
  } lanes = {x};
  return __builtin_convertvector(lanes.halves[half], vd);
}

}  // namespace

}  // namespace PF_ISA
