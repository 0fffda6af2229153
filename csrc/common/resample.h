// Resampling: along each of three axes a place of the output is a weighted sum of places of the input. Interpolation,
// padding, and their gradients, which are the same with the tables transposed.
#pragma once
#include <stdint.h>

#include "dtype.h"

struct ResampleAxis {
  const int32_t* first;  // [out + 1]: place o reads the entries [first[o], first[o + 1])
  const int32_t* index;  // [entries]: places of the input, each in [0, in)
  const void* weight;    // [entries], float, double for double; null: all are 1
  int64_t in, out;
  int64_t taps;  // the most entries that a place has
};

struct Resample {
  const void* x;         // [outer, in of each axis, inner], dtype, dense
  void* y;               // [outer, out of each axis, inner], dtype, dense
  ResampleAxis axis[3];  // depth, height, width
  int64_t outer, inner;  // rows of adjacent elements that no axis moves: channels, where they come last
  double fill;           // what a place without entries is
  void* workspace;       // resample_workspace(...) bytes, aligned to 64
  Dtype dtype;
};

// Up to here the elements of a place are folded into the last axis, whose table then has one row for each of them.
constexpr int64_t kResampleFold = 16;
constexpr int64_t kResampleLanes = 16;  // of the widest vector

static inline int64_t resample_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// The source row of one thread, with what two vectors may read behind it.
static inline int64_t resample_row_bytes(int64_t in, int64_t inner, int64_t itemsize) {
  return resample_line((in * inner + 2 * kResampleLanes) * itemsize);
}
// The last axis as vectors read it: see Plan in cpu/resample/plan.h. Vectors hold two elements at least.
static inline int64_t resample_plan_bytes(int64_t out, int64_t taps, int64_t inner, int64_t itemsize) {
  if (inner >= kResampleFold) return 0;
  int64_t width = out * inner, chunks = width / 2 + 1, most = taps > 0 ? taps : 1;
  return resample_line(chunks * 16) + resample_line(chunks * most * 4) +
         resample_line((width + kResampleLanes) * most * 4) +
         resample_line((width + kResampleLanes) * most * itemsize) + resample_line((width + kResampleLanes) * itemsize);
}
// In bytes; itemsize is that of the arithmetic type, in, out and taps those of the last axis.
static inline int64_t resample_workspace(int64_t in, int64_t out, int64_t taps, int64_t inner, int64_t itemsize,
                                         int64_t threads) {
  return resample_plan_bytes(out, taps, inner, itemsize) + threads * resample_row_bytes(in, inner, itemsize);
}
