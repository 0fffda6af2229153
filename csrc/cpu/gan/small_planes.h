// Narrow planes, as many at once as a vector has lanes: a strip of each is transposed into the cache, where a place is
// a vector with a lane for every plane, filtered there as channels that come last are, and transposed back. A row of
// one such plane fills no vector, and what is looked up for it takes longer than its sums.
#pragma once
#include "../core/columns.h"
#include "../core/parallel.h"
#include "../simd/transpose.h"
#include "stage.h"

namespace PF_ISA::gan {

namespace {

// Places [j, j + lanes) of `planes` planes that are `stride` apart, of which `left` are there.
template <class S, class Count>
PF_INLINE void lanes_from_planes(const S* from, int64_t stride, Acc<S>* to, int64_t planes, Count left) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>;
  Vec<T> square[lanes];
  PF_UNROLL
  for (int i = 0; i < lanes; i++) square[i] = i < planes ? load_part(from + i * stride, left) : Vec<T>{};
  transpose(square);
  PF_UNROLL
  for (int i = 0; i < lanes; i++) store(to + i * lanes, square[i]);
}
template <class S, class Count>
PF_INLINE void planes_from_lanes(const Acc<S>* from, S* to, int64_t stride, int64_t planes, Count left) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>;
  Vec<T> square[lanes];
  PF_UNROLL
  for (int i = 0; i < lanes; i++) square[i] = load(from + i * lanes);
  transpose(square);
  PF_UNROLL
  for (int i = 0; i < lanes; i++)
    if (i < planes) store_part(to + i * stride, square[i], left);
}

// Rows of the planes [first, first + planes) of a strip: of the result [begin, end), of the picture those that they
// meet.
template <class S>
struct Strip {
  typedef Acc<S> T;
  static constexpr int lanes = kLanes<T>;
  const Stage<T>& stage;
  const GanFilter& f;
  T *in, *out, *line;
  explicit Strip(const Stage<T>& stage, T* buffer) : stage(stage), f(stage.f) {
    in = buffer, out = in + gan_strip_in(f) * kGanLanes, line = out + gan_strip_out(f) * kGanLanes;
    memset(line, 0, stage.lines() * sizeof(T));
  }

  void operator()(const S* x, S* y, int64_t planes, int64_t begin, int64_t end) const {
    const Meeting first = row_meeting(begin), last = row_meeting(end - 1);
    const int64_t low = max_of(0, min_of(first.place, f.in_y)),
                  high = max_of(low, min_of(last.place + last.count, f.in_y));
    const int64_t x_plane = f.in_y * f.in_x, y_plane = f.out_y * f.out_x;
    x += low * f.in_x, y += begin * f.out_x;
    for_columns<T, 1>(0, (high - low) * f.in_x, [&](int64_t j, auto left, int) {
      lanes_from_planes(x + j, x_plane, in + j * lanes, planes, left);
    });
    auto row_at = [&](int64_t row) { return in + (row - low) * f.in_x * lanes; };
    for (int64_t o = begin; o < end; o++) {
      stage.template sum<T>(line, o, row_at, lanes, lanes, (const T*)nullptr);
      stage.template filter<T>(out + (o - begin) * f.out_x * lanes, o, line, lanes, lanes, AsItIs{});
    }
    for_columns<T, 1>(0, (end - begin) * f.out_x, [&](int64_t j, auto left, int) {
      planes_from_lanes(out + j * lanes, y + j, y_plane, planes, left);
    });
  }

  Meeting row_meeting(int64_t o) const { return meeting(o, f.up_y, f.down_y, f.pad_y, f.taps_y); }
};

template <class S>
void upfirdn2d_small_planes(const Upfirdn2d& p, int threads) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>;
  const GanFilter& f = p.filter;
  Carver carver{(char*)p.workspace, 0};
  const Stage<T> stage(f, lanes, carver);
  const int64_t bytes = gan_strip_bytes(f, sizeof(T)), rows = gan_strip_rows(f), strips = ceil_div(f.out_y, rows);
  char* buffers = carver.take<char>(threads * bytes);
  const int64_t units = ceil_div(p.outer, lanes) * strips;
  parallel_ranges(units, max_of(1, kElementwiseGrain / (rows * f.out_x * lanes)), threads,
                  [&](int64_t begin, int64_t end) {
                    const Strip<S> strip(stage, (T*)(buffers + omp_get_thread_num() * bytes));
                    for (int64_t unit = begin; unit < end; unit++) {
                      const int64_t plane = unit / strips * lanes, row = unit % strips * rows;
                      strip((const S*)p.x + plane * f.in_y * f.in_x, (S*)p.y + plane * f.out_y * f.out_x,
                            min_of(lanes, p.outer - plane), row, min_of(row + rows, f.out_y));
                    }
                  });
}

}  // namespace

}  // namespace PF_ISA::gan
