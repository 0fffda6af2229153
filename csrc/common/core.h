// What belongs to no family of operations.
#pragma once
#include <stdint.h>

#include "dtype.h"

// The machine's floating-point limit, measured: fused multiply-adds on registers only.
struct FmaPeak {
  int64_t iterations;
  Dtype dtype;    // bf16: its dot product, where the instruction set has one; else and for all others float32
  double* flops;  // out: operations done by all threads together
  float* sink;    // out: keeps the compiler from dropping the loop
};

// to[b, c, r] = from[b, r, c], both dense.
struct Transposed {
  const void* from;  // [batch, rows, cols]
  void* to;          // [batch, cols, rows]
  int64_t batch, rows, cols;
  int64_t itemsize;  // 2, 4 or 8 bytes
};

// ---- do weights still hold what they held when they were packed? ----
constexpr int64_t kPhases = 64;

// A hash of a matrix's bits and of where they stand.
struct Fingerprint {
  const void* data;  // [rows, row_bytes], dense
  int64_t rows, row_bytes;
  // Which share is read: 0 to kPhases - 1, or all of it when negative. Each share has at least one line of 64 bytes of
  // every row and of every column: all lines of a small matrix, one in kPhases of a large one. All shares together are
  // the whole matrix.
  int64_t phase;
  uint64_t* hash;  // out
};
