// Where the windows of one dimension lie, and which windows an element lies in.
#pragma once
#include "../../common/pool.h"
#include "../core/parallel.h"

#define PF_MEMBER inline __attribute__((always_inline))

namespace PF_ISA::pool {

namespace {

PF_INLINE bool is_adaptive(const PoolAxis& a) { return a.kernel == 0; }

// a / b for a >= 0, b >= 1 that is nearly always 1 or 2: a division takes as long as ten other instructions.
PF_INLINE int64_t quotient_of(int64_t a, int64_t b) { return b == 1 ? a : b == 2 ? a >> 1 : a / b; }

// The elements of a window that are there: first, first + dilation, ...
struct Taps {
  int64_t first, count;
  int64_t counted;  // of how many the mean is
};

PF_INLINE Taps taps_of(const PoolAxis& a, int64_t o, bool counts_padding = false) {
  if (is_adaptive(a)) {
    const int64_t first = o * a.in / a.out, count = ceil_div((o + 1) * a.in, a.out) - first;
    return {first, count, count};
  }
  const int64_t start = o * a.stride - a.padding, end = start + (a.kernel - 1) * a.dilation + 1;
  const int64_t first = start < 0 ? start + quotient_of(a.dilation - 1 - start, a.dilation) * a.dilation : start;
  const int64_t last = min_of(end, a.in);
  const int64_t count = last > first ? quotient_of(last - first + a.dilation - 1, a.dilation) : 0;
  return {first, count, counts_padding ? min_of(end, a.in + a.padding) - start : count};
}

struct Range {
  int64_t begin, end;
};

// The windows whose elements are all there.
PF_INLINE Range whole_windows(const PoolAxis& a) {
  if (is_adaptive(a)) return {0, 0};
  const int64_t begin = min_of(ceil_div(a.padding, a.stride), a.out);
  const int64_t room = a.in - 1 - (a.kernel - 1) * a.dilation + a.padding;
  return {begin, room < 0 ? begin : max_of(begin, min_of(room / a.stride + 1, a.out))};
}

// The windows from the first to the last that element i lies in; with a dilation some between them may not have it.
PF_INLINE Range windows_of(const PoolAxis& a, int64_t i) {
  if (is_adaptive(a)) return {i * a.out / a.in, ((i + 1) * a.out - 1) / a.in + 1};
  const int64_t last = i + a.padding, first = last - (a.kernel - 1) * a.dilation;
  return {first <= 0 ? 0 : quotient_of(first + a.stride - 1, a.stride), min_of(quotient_of(last, a.stride) + 1, a.out)};
}

// Planes whose windows are as wide as they are, as rows: a window is then one run of memory. Places in the plane stay.
PF_INLINE PoolShape collapsed(PoolShape s) {
  for (int round = 0; round < 2; round++) {
    const PoolAxis &h = s.height, &w = s.width;
    if (s.inner != 1 || w.out != 1 || w.kernel != w.in || w.padding || w.dilation != 1 || h.dilation != 1 ||
        is_adaptive(h))
      break;
    const int64_t n = w.in;
    s.width = {h.in * n, h.out, h.kernel * n, h.stride * n, h.padding * n, 1};
    s.height = s.depth;
    s.depth = {1, 1, 1, 1, 0, 1};
  }
  return s;
}

// body(outer, d, h) for each row of [outer, depth, height], on threads that get so many elements each.
template <class Body>
PF_INLINE void for_rows(int64_t outer, int64_t depth, int64_t height, int64_t elements, int threads, Body body) {
  const int64_t rows = outer * depth * height;
  const int64_t grain = max_of(1, kElementwiseGrain * rows / max_of(1, elements));
  parallel_ranges(rows, grain, threads, [&](int64_t begin, int64_t end) {
    int64_t o = begin / height / depth, d = begin / height % depth, h = begin % height;
    for (int64_t row = begin; row < end; row++) {
      body(o, d, h);
      if (++h < height) continue;
      h = 0;
      if (++d < depth) continue;
      d = 0, o++;
    }
  });
}

}  // namespace

}  // namespace PF_ISA::pool
