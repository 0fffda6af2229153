// Pooling: every output is the largest, or the mean, of a window of the input. One, two and three dimensions are three:
// those that are not there have size 1.
//
// A tensor is [outer, depth, height, width, inner], dense: NCHW has all planes in outer and inner 1, channels_last has
// the batch in outer and the channels in inner.
#pragma once
#include <stdint.h>

#include "dtype.h"

// Where the windows of one dimension lie. Window o holds the elements o * stride - padding + t * dilation, t < kernel,
// as far as they are there; an adaptive one (kernel 0) those from floor(o * in / out) to before ceil((o + 1) * in /
// out).
struct PoolAxis {
  int64_t in, out;
  int64_t kernel, stride, padding, dilation;
};

struct PoolShape {
  int64_t outer, inner;
  PoolAxis depth, height, width;
};

// What an index is stored as: the place of an element in its plane, (d * height + h) * width + w.
enum class PoolIndex : int32_t { none = 0, i32 = 1, i64 = 2 };
constexpr int kPoolIndices = 3;

struct MaxPoolFwd {
  const void* x;  // input, dtype
  void* y;        // output, dtype
  void* indices;  // output, of which type index says; null with none
  PoolShape shape;
  PoolIndex index;
  Dtype dtype;
};

struct MaxPoolBwd {
  const void* dy;       // output, dtype
  const void* indices;  // output: what the forward wrote
  void* dx;             // input, dtype
  void* workspace;      // max_pool_bwd_workspace bytes for each thread
  PoolShape shape;
  PoolIndex index;
  Dtype dtype;
};

// Of a half type planes are summed in float.
static inline int64_t max_pool_bwd_workspace(const PoolShape& s, Dtype dtype) {
  const int64_t plane = s.depth.in * s.height.in * s.width.in;
  return s.inner == 1 && (dtype == Dtype::bf16 || dtype == Dtype::f16) ? (plane * 4 + 63) / 64 * 64 : 0;
}

// The mean divides by how many elements the window has. With counts_padding by how many it would have if the padding
// were elements; a divisor other than 0 replaces both.
struct AvgPool {
  const void* from;  // forward: input; backward: output's gradient
  void* to;          // forward: output; backward: input's gradient
  PoolShape shape;
  bool counts_padding;
  int64_t divisor;
  Dtype dtype;
};

// to[outer, index, c] = from[outer, i, c] for each input i, and zeros elsewhere; backward, of from and to exchanged,
// each input takes what lies at its index. An index that is no place in the plane is not followed.
struct MaxUnpool {
  const void* from;         // forward: input; backward: output's gradient; dtype
  const int64_t* indices;   // input
  void* to;                 // forward: output; backward: input's gradient
  int64_t outer, inner;     // as PoolShape's
  int64_t inputs, outputs;  // elements of a plane
  Dtype dtype;
  int64_t* wrong;  // in: -1; out: a place whose index is out of range, where there is one
};
