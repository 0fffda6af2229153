// Parameters of the kernel that tells whether weights still are what they were when they were packed.
#pragma once
#include <stdint.h>

constexpr int64_t kPhases = 64;

// A hash of a matrix's bits and of where they stand.
struct Fingerprint {
  const void* data;  // [rows, row_bytes], dense
  int64_t rows, row_bytes;
  // kPhases of them: each reads another share, at least one line of 64 bytes of every row and of every column, of the
  // large ones one in kPhases, of the small ones all. All phases together read everything. Negative: everything at
  // once.
  int64_t phase;
  uint64_t* hash;
};
