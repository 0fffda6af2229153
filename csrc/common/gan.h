// The resampling operators of StyleGAN: zeros are put between the places of a picture, it is padded or cropped,
// filtered, and every so many-th place is kept. And the same twice, with an activation between.
#pragma once
#include <stdint.h>

#include "dtype.h"

constexpr int64_t kGanMostTaps = 128;  // of a filter, each way
constexpr int64_t kGanMostStep = 64;   // up and down

// From a picture of one size to one of another: place o of an axis is the sum of tap[k] * place (o * down + k - pad) of
// the picture with up - 1 zeros behind each place. Which taps these are, in what order, `is_flipped` says.
struct GanFilter {
  const float* taps;  // [taps_y, taps_x], or of a separable filter [taps_x], the same both ways
  int64_t taps_y, taps_x;
  bool is_separable;
  bool is_flipped;  // a correlation: tap k is the k-th one as it is written, not the k-th from the end
  double gain;
  int64_t up_y, up_x, down_y, down_x;
  int64_t pad_y, pad_x;  // before the first place; below 0 these are taken away. What is behind follows from the sizes
  int64_t in_y, in_x, out_y, out_x;
};

struct Upfirdn2d {
  const void* x;  // [outer, in_y, in_x, inner], dtype, dense
  void* y;        // [outer, out_y, out_x, inner], dtype, dense
  GanFilter filter;
  int64_t outer, inner;  // inner: channels, where they come last
  void* workspace;       // upfirdn2d_workspace(...) bytes, aligned to 64
  Dtype dtype;
};

// y = down(phi(up(x + bias))), or with v its derivative y = down(phi'(up(x + bias)) * of_v(v)); phi(u) is gain * u, for
// u
// <= 0 times slope, no further from 0 than clamp. down.up_y and down.up_x are 1.
struct FilteredLrelu {
  const void* x;     // [outer, up.in_y, up.in_x, inner], dtype, dense
  const void* bias;  // [channels], dtype; or null
  const void* v;     // [outer, of_v.in_y, of_v.in_x, inner], dtype, dense; or null
  void* y;           // [outer, down.out_y, down.out_x, inner], dtype, dense
  GanFilter up, of_v, down;
  int64_t outer, inner, channels;
  double gain, slope, clamp;  // clamp below 0: none
  void* workspace;            // filtered_lrelu_workspace(...) bytes, aligned to 64
  Dtype dtype;
};

constexpr int64_t kGanLanes = 16;  // of the widest vector

static inline int64_t gan_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
static inline int64_t gan_floor(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
static inline int64_t gan_most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t gan_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}
// Places of a row of the source that the row's filter reads, some of them outside of it.
static inline int64_t gan_low(const GanFilter& f) { return gan_floor(-f.pad_x, f.up_x); }
static inline int64_t gan_span(const GanFilter& f) {
  return gan_floor((f.out_x - 1) * f.down_x + f.taps_x - 1 - f.pad_x, f.up_x) + 1 - gan_low(f);
}
// Channels that are worked on together, so that `most` elements hold the places of a row.
static inline int64_t gan_block(int64_t inner, int64_t span, int64_t most) {
  const int64_t block = most / (span > 0 ? span : 1) / kGanLanes * kGanLanes;
  return inner < kGanLanes || inner < block ? inner : block > kGanLanes ? block : kGanLanes;
}
constexpr int64_t kGanRow = 32768;  // of one row, that stays in the second cache
constexpr int64_t kGanRing = 8192;  // of each of many
static inline int64_t gan_step(const GanFilter& f) { return f.down_x / gan_divisor(f.up_x, f.down_x); }
// Elements of one line: what the filter reads, apart by `step` where there is one channel, and what vectors touch
// behind.
static inline int64_t gan_line(const GanFilter& f, int64_t block) {
  const int64_t step = block > 1 ? 1 : gan_step(f), span = gan_span(f) + step;
  return step * (((span + step - 1) / step * block + 3 * kGanLanes) / kGanLanes * kGanLanes);
}
static inline int64_t gan_line_count(const GanFilter& f) {  // of a filter that is no product
  return f.is_separable ? 1 : (f.taps_y + f.up_y - 1) / f.up_y;
}
// Rows that are worked on together: what is written is not read at once, before it has left the processor's store
// queue.
static inline int64_t gan_rows(const GanFilter& f, int64_t block) {
  const int64_t rows = 4096 / (gan_line(f, block) * gan_line_count(f));
  return rows < 1 ? 1 : rows > 16 ? 16 : rows > 4 ? rows / 4 * 4 : rows;  // four go together
}
static inline int64_t gan_buffer(const GanFilter& f, int64_t block, int64_t rows, int64_t itemsize) {
  return gan_lines(rows * gan_line_count(f) * gan_line(f, block) * itemsize);
}
// The tables of a filter: a tap's place and weight, by phase.
static inline int64_t gan_tables(const GanFilter& f, int64_t itemsize) {
  const int64_t entries = (f.taps_x + f.up_x) * (f.is_separable ? 1 : f.taps_y + f.up_y);
  const int64_t phases = f.up_x * (f.is_separable ? 1 : f.up_y) + 1;
  return gan_lines(f.taps_y * itemsize) + gan_lines(f.taps_x * itemsize) + gan_lines(phases * 4) +
         gan_lines(entries * 4) + gan_lines(entries * itemsize);
}
// Of narrow planes a strip of rows at a time, of as many planes as a vector has lanes: rows of the result such that it
// and what it is made of stay in the first caches.
constexpr int64_t kGanStrip = 1024;  // places of a plane
static inline int64_t gan_strip_rows(const GanFilter& f) {
  const int64_t rows = kGanStrip / gan_most(f.out_x * f.up_y, f.in_x * f.down_y) * f.up_y;
  return rows < 1 ? 1 : rows < f.out_y ? rows : f.out_y;
}
static inline int64_t gan_strip_out(const GanFilter& f) { return gan_strip_rows(f) * f.out_x + kGanLanes; }
static inline int64_t gan_strip_in(const GanFilter& f) {
  const int64_t rows = ((gan_strip_rows(f) - 1) * f.down_y + f.taps_y - 1) / f.up_y + 1;
  return (rows < f.in_y ? rows : f.in_y) * f.in_x + kGanLanes;  // vectors of places are whole
}
static inline int64_t gan_strip_bytes(const GanFilter& f, int64_t itemsize) {
  const int64_t lines = gan_line_count(f) * gan_line(f, kGanLanes);
  return gan_lines(((gan_strip_in(f) + gan_strip_out(f)) * kGanLanes + lines) * itemsize);
}
// Zen 4, one thread, the time by rows over that by strips, the call's 28 us included: 2048 planes of 4x4 filtered to
// 5x5 3.4 and upsampled 2.6, 1024 of 8x8 2.6 and 1.9, 512 of 16x16 2.3 and 1.5, 256 of 32x32 2.3 and 1.0, 128 of
// 64x64 1.0 and 0.8; halved 4.0, 1.8, 1.4, 1.0 and 0.7. Of 12 planes 1.0 at every size, of 8 0.95.
constexpr int64_t kGanNarrow = 40;  // places of a row
constexpr int64_t kGanLeastPlanes = 12;
static inline bool gan_is_by_strips(const Upfirdn2d& p) {
  const GanFilter& f = p.filter;
  return p.inner == 1 && p.outer >= kGanLeastPlanes && f.in_x <= kGanNarrow && f.out_x <= kGanNarrow;
}

// In bytes; itemsize is that of the arithmetic type.
static inline int64_t upfirdn2d_workspace(const Upfirdn2d& p, int64_t itemsize, int64_t threads) {
  if (gan_is_by_strips(p)) return gan_tables(p.filter, itemsize) + threads * gan_strip_bytes(p.filter, itemsize);
  const int64_t block = gan_block(p.inner, gan_span(p.filter), kGanRow);
  return gan_tables(p.filter, itemsize) + threads * gan_buffer(p.filter, block, gan_rows(p.filter, block), itemsize);
}

static inline int64_t filtered_lrelu_block(const FilteredLrelu& p) {
  const int64_t span = gan_most(gan_span(p.up), gan_span(p.down));
  return gan_block(p.inner, p.v ? gan_most(span, gan_span(p.of_v)) : span, kGanRing);
}
static inline int64_t gan_row(int64_t width, int64_t block) { return gan_lines((width * block + kGanLanes) * 4) / 4; }
// Rows of the middle that are kept: what a batch of rows of the result reads.
static inline int64_t filtered_lrelu_ring(const FilteredLrelu& p, int64_t block) {
  return (gan_rows(p.down, block) - 1) * p.down.down_y + p.down.taps_y;
}
static inline int64_t filtered_lrelu_workspace(const FilteredLrelu& p, int64_t itemsize, int64_t threads) {
  const int64_t block = filtered_lrelu_block(p), rows = gan_rows(p.up, block);
  int64_t tables = gan_tables(p.up, itemsize) + gan_tables(p.down, itemsize);
  int64_t buffers = gan_buffer(p.up, block, rows, itemsize) +
                    gan_buffer(p.down, block, gan_rows(p.down, block), itemsize) +
                    (filtered_lrelu_ring(p, block) + 1) * gan_row(p.up.out_x, block) * itemsize;
  if (p.v) tables += gan_tables(p.of_v, itemsize), buffers += gan_buffer(p.of_v, block, rows, itemsize);
  return tables + threads * buffers;
}
