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

// No element lies in two windows.
static inline bool are_apart(const PoolAxis& a) {
  return a.kernel ? (a.kernel - 1) * a.dilation < a.stride : a.in % a.out == 0;
}
static inline bool are_apart(const PoolShape& s) {
  return are_apart(s.depth) && are_apart(s.height) && are_apart(s.width);
}

// Of an image of channels_last memory. An element may ask the windows that it lies in, a vector of channels at a time,
// or each output's gradient be added where its index says, one by one. Zen 4, one thread, float32, 191 channels of
// 28x28x28 to 2x2x2: 906 us and 670; bfloat16 1322 and 310.
constexpr int64_t kScatteredTaps = 6;
constexpr int64_t kFewOutputs = 16;         // one in so many elements, or fewer
constexpr int64_t kScatteredChannels = 16;  // at once, of a half type

static inline int64_t most_taps(const PoolAxis& a) { return a.kernel ? a.kernel : (a.in - 1) / a.out + 2; }

static inline bool max_pool_scatters_images(const PoolShape& s, Dtype dtype) {
  const bool is_half = dtype == Dtype::bf16 || dtype == Dtype::f16;
  const PoolAxis &d = s.depth, &h = s.height, &w = s.width;
  if (is_half && !are_apart(s)) return d.out * h.out * w.out * kFewOutputs <= d.in * h.in * w.in;
  return most_taps(d) * most_taps(h) * most_taps(w) >= kScatteredTaps;
}

// Sums of a half type are kept in float.
constexpr int64_t kPlanesElements = 1024;  // of planes that are summed together

static inline int64_t max_pool_bwd_workspace(const PoolShape& s, Dtype dtype) {
  const int64_t plane = s.depth.in * s.height.in * s.width.in;
  if ((dtype != Dtype::bf16 && dtype != Dtype::f16) || are_apart(s)) return 0;
  if (s.inner == 1) return ((plane < kPlanesElements ? kPlanesElements : plane) * 4 + 63) / 64 * 64;
  return max_pool_scatters_images(s, dtype) ? plane * kScatteredChannels * 4 : 0;
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
