// Local response normalisation (Krizhevsky et al. 2012, section 3.3) and its backward: y = x / s^beta with
// s = k + scale * sum of the squares of the channels from `before` before its own to `after` after it, as far as they
// are there.
#pragma once
#include <stdint.h>

#include "dtype.h"

struct LocalResponse {
  const void* x;    // [batch, channels, positions], dtype, dense: in this order, or is_last
  const void* dy;   // like x; null: the forward
  void* to;         // like x: y, or dx
  void* workspace;  // local_response_workspace(...) of the arithmetic type, for each thread; none of a forward
                    // that is not is_last
  int64_t batch, channels, positions;
  bool is_last;           // the channels are adjacent
  int64_t before, after;  // less than channels
  double scale;           // 0 or more, as k: so that s is
  double beta;            // more than 0
  double k;
  Dtype dtype;
};

constexpr int64_t kResponseLanes = 16;   // no vector has more
constexpr int64_t kResponseBlock = 512;  // positions that are walked through the channels together, at most

// Positions of a block whose channels are kept, in two forms, in the second cache.
static inline int64_t local_response_block(int64_t channels) {
  const int64_t fits = 32768 / (channels > 0 ? channels : 1) / kResponseLanes * kResponseLanes;
  return fits < kResponseLanes ? kResponseLanes : fits < kResponseBlock ? fits : kResponseBlock;
}
// A row of channels with what windows reach beyond both its ends.
static inline int64_t local_response_row(int64_t channels, int64_t before, int64_t after) {
  return before + channels + after + 2 * kResponseLanes;
}
static inline int64_t local_response_workspace(int64_t channels, bool is_last, int64_t before, int64_t after) {
  return is_last ? 3 * local_response_row(channels, before, after) : 2 * channels * local_response_block(channels);
}
