// The machine's floating-point limit, measured: fused multiply-adds on registers only.
#pragma once
#include <stdint.h>

struct FmaPeak {
  int64_t iterations;
  double* flops;  // out: float32 operations done by all threads together
  float* sink;    // out: keeps the compiler from dropping the loop
};
