// The machine's floating-point limit, measured: fused multiply-adds on registers only.
#pragma once
#include <stdint.h>

#include "dtype.h"

struct FmaPeak {
  int64_t iterations;
  Dtype dtype;    // bf16: its dot product, where the instruction set has one; else and for all others float32
  double* flops;  // out: operations done by all threads together
  float* sink;    // out: keeps the compiler from dropping the loop
};
