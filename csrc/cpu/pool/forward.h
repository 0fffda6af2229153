// One pass over windows, for any fold of a window's elements into one value. A fold F has
// - Lanes, One: what is kept of a window, of a vector of windows and of one
// - start(place of the first element)
// - fold(kept, x, place): the next element, in the order in which they lie in memory
// - end_of_run(kept): after at most a row of a window, or kLongRun elements
// - together(lanes): one window of which each lane had a part
// - join(kept, lanes, i): the lane i too, later in no row than what is kept
// - store(at, kept, ...): to the outputs from `at` on
// - kAbsent: a value that changes nothing
//
// Vectors hold windows beside each other along the width (NCHW), the elements of one long window, or channels
// (channels_last). What sticks out over the edges of the input is done window by window.
#pragma once
#include "lanes.h"
#include "window.h"

namespace PF_ISA::pool {

namespace {

constexpr int64_t kLongRun = 1024;
constexpr int64_t kColumns = 512;  // of a plane whose rows are folded into one
constexpr int64_t kTabled = 128;   // windows along the width whose places are worked out once for all rows

// The part of the windows of a row of outputs that all of them share.
struct Rows {
  const PoolShape& shape;
  Taps d, h;
  // body(place of the row's first element), in memory order
  template <class Body>
  PF_MEMBER void each(Body body) const {
    for (int64_t i = 0, z = d.first; i < d.count; i++, z += shape.depth.dilation)
      for (int64_t j = 0, y = h.first; j < h.count; j++, y += shape.height.dilation)
        body((z * shape.height.in + y) * shape.width.in);
  }
  int64_t first() const { return (d.first * shape.height.in + h.first) * shape.width.in; }
};

// The output `o` of a row.
template <class F>
PF_INLINE void fold_window(const F& f, const typename F::Storage* plane, const Rows& rows, int64_t o, int64_t at) {
  const PoolAxis& axis = rows.shape.width;
  const Taps w = taps_of(axis, o, f.counts_padding);
  typename F::One kept = f.start(rows.first() + w.first);
  rows.each([&](int64_t row) {
    for (int64_t t = 0, x = row + w.first; t < w.count; t++, x += axis.dilation) f.fold(kept, get(plane + x), x);
    f.end_of_run(kept);
  });
  f.store(at + o, kept, rows.d.counted * rows.h.counted * w.counted);
}

// fold(x, t) for the elements t of windows that lie kStride apart; 0: any stride.
template <int kStride, class S, class Lanes, class Fold>
PF_INLINE void each_tap(const S* p, const PoolAxis& axis, Lanes lanes, Fold fold) {
  const int64_t n = axis.kernel;
  if constexpr (kStride == 1) {
    for (int64_t t = 0; t < n; t++) fold(load_lanes(p + t * axis.dilation, lanes), t * axis.dilation);
  } else if constexpr (kStride == 2) {  // two elements at least, beside each other
    Vec<Acc<S>> even, odd;
    for (int64_t t = 0; t + 2 <= n; t += 2) {
      load_pairs(p + t, lanes, even, odd);
      fold(even, t);
      fold(odd, t + 1);
    }
    if (n % 2) {  // as the second of a pair: what lies behind the last element may be nobody's
      load_pairs(p + n - 2, lanes, even, odd);
      fold(odd, n - 1);
    }
  } else {
    for (int64_t t = 0; t < n; t++) fold(load_apart(p + t * axis.dilation, axis.stride, lanes), t * axis.dilation);
  }
}

// The windows [begin, end) of a row, all of whose elements along the width are there.
template <int kStride, class F>
void fold_row(const F& f, const typename F::Storage* plane, const Rows& rows, Range range, int64_t at) {
  typedef typename F::Value T;
  const PoolAxis& axis = rows.shape.width;
  const int64_t counted = rows.d.counted * rows.h.counted * axis.kernel;
  for_lanes<T>(range.begin, range.end, [&](int64_t o, auto lanes) {
    const int64_t start = o * axis.stride - axis.padding;
    typename F::Lanes kept = f.start(splat_place<T>(rows.first()));
    rows.each([&](int64_t row) {
      // Rows of a window take turns, which the processor's own prefetch gives up on; all together they are one stream.
      for (int64_t line = 0; line < kStride; line++)
        __builtin_prefetch((const char*)(plane + row + start) + kAhead + line * 64);
      each_tap<kStride>(plane + row + start, axis, lanes,
                        [&](Vec<T> x, int64_t t) { f.fold(kept, x, splat_place<T>(row + t)); });
      f.end_of_run(kept);
    });
    f.store(at + o, kept, start, axis.stride, counted, lanes);
  });
}

// The windows along the width, which are those of every row.
struct Tabled {
  Taps taps[kTabled];
  int64_t count;
};

PF_INLINE void tabulate(const PoolAxis& axis, bool counts_padding, Tabled& table) {
  for (int64_t o = 0; o < axis.out; o++) table.taps[o] = taps_of(axis, o, counts_padding);
  table.count = axis.out;
}

// A row of windows of several rows: the elements below each other are folded first, a vector of columns at a time, then
// the columns of each window, one by one. room: elements from the plane on, its own and what follows; the last vector
// of a row may read those of the next.
template <class F>
void fold_columns(const F& f, const typename F::Storage* plane, const Rows& rows, const Tabled& windows, int64_t at,
                  int64_t room) {
  typedef typename F::Value T;
  typename F::Lanes columns[kColumns / kLanes<T>];
  const PoolAxis& axis = rows.shape.width;
  for_lanes<T>(0, axis.in, [&](int64_t x, auto lanes) {
    typename F::Lanes kept = f.start(places_from<T>(rows.first() + x, 1));
    rows.each([&](int64_t row) {
      const auto* from = plane + row + x;
      const bool has_room = row + x + kLanes<T> <= room;
      f.fold(kept, has_room ? load(from) : load_lanes(from, lanes, F::kAbsent), places_from<T>(row + x, 1));
      f.end_of_run(kept);
    });
    columns[x / kLanes<T>] = kept;
  });
  for (int64_t o = 0; o < windows.count; o++) {
    const Taps& w = windows.taps[o];
    typename F::One kept = f.start(rows.first() + w.first);
    for (int64_t t = 0, x = w.first; t < w.count; t++, x += axis.dilation)
      f.join(kept, columns[x / kLanes<T>], x % kLanes<T>);
    f.store(at + o, kept, rows.d.counted * rows.h.counted * w.counted);
  }
}

// The same for windows that are long and without gaps: a vector holds elements of one.
template <class F>
void fold_long_windows(const F& f, const typename F::Storage* plane, const Rows& rows, Range range, int64_t at) {
  typedef typename F::Value T;
  for (int64_t o = range.begin; o < range.end; o++) {
    const Taps w = taps_of(rows.shape.width, o);
    typename F::Lanes kept = f.start(splat_place<T>(rows.first() + w.first));
    rows.each([&](int64_t row) {
      for (int64_t x = row + w.first, end = x + w.count; x < end; x += kLongRun) {
        for_lanes<T>(x, min_of(x + kLongRun, end), [&](int64_t x, auto lanes) {
          f.fold(kept, load_lanes(plane + x, lanes, F::kAbsent), places_from<T>(x, 1));
        });
        f.end_of_run(kept);
      }
    });
    f.store(at + o, f.together(kept), rows.d.counted * rows.h.counted * w.count);
  }
}

// The same for a window that is its plane: one run of memory, whose sizes are known before.
template <class F>
PF_INLINE void fold_plane(const F& f, const typename F::Storage* plane, int64_t at, int64_t size) {
  typedef typename F::Value T;
  typename F::Lanes kept = f.start(splat_place<T>(0));
  for (int64_t run = 0; run < size; run += kLongRun) {
    for_lanes<T>(run, min_of(run + kLongRun, size), [&](int64_t x, auto lanes) {
      f.fold(kept, load_lanes(plane + x, lanes, F::kAbsent), places_from<T>(x, 1));
    });
    f.end_of_run(kept);
  }
  f.store(at, f.together(kept), size);
}

// One row of windows of channels_last memory.
template <class F>
void fold_pixels(const F& f, const typename F::Storage* image, const Rows& rows, int64_t at) {
  typedef typename F::Value T;
  const PoolAxis& axis = rows.shape.width;
  const int64_t channels = rows.shape.inner;
  for (int64_t o = 0; o < axis.out; o++) {
    const Taps w = taps_of(axis, o, f.counts_padding);
    const int64_t counted = rows.d.counted * rows.h.counted * w.counted, to = (at + o) * channels;
    const auto fold_block = [&](int64_t c, auto vectors, auto lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      typename F::Lanes kept[kVectors];
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) kept[v] = f.start(splat_place<T>(rows.first() + w.first));
      rows.each([&](int64_t row) {
        for (int64_t t = 0, x = row + w.first; t < w.count; t++, x += axis.dilation) {
          PF_UNROLL
          for (int v = 0; v < kVectors; v++)
            f.fold(kept[v], load_lanes(image + x * channels + c + v * kLanes<T>, lanes), splat_place<T>(x));
        }
        PF_UNROLL
        for (int v = 0; v < kVectors; v++) f.end_of_run(kept[v]);
      });
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) f.store(to + c + v * kLanes<T>, kept[v], 0, 0, counted, lanes);
    };
    int64_t c = 0;
    for (; c + kChannelVectors * kLanes<T> <= channels; c += kChannelVectors * kLanes<T>)
      fold_block(c, Vectors<kChannelVectors>{}, AllLanes{});
    for_lanes<T>(c, channels, [&](int64_t c, auto lanes) { fold_block(c, Vectors<1>{}, lanes); });
  }
}

// What a vector of a row holds: an element of each window, elements of one window, or of columns that windows are made
// of.
enum class Way { windows, window, columns };

// The cheapest, in loads of a vector. Elements that lie apart are loaded one by one, which costs 5 for each of a
// window; to put the lanes of a window together costs 20, and a column 1. Zen 4, one thread, bfloat16: 16384 windows of
// 4x4x4 in planes of 8x8x8, 17.2 ms a window at a time, 4.4 as columns.
PF_INLINE Way way_of(const PoolAxis& d, const PoolAxis& h, const PoolAxis& w, int64_t lanes) {
  const int64_t rows = most_taps(d) * most_taps(h), taps = most_taps(w);
  const bool is_dense = w.dilation == 1, has_columns = rows > 1 && w.in <= kColumns && w.out <= kTabled;
  if (!is_adaptive(w) && (w.stride <= 2 || !is_dense)) return Way::windows;
  const int64_t apart = is_adaptive(w) ? w.out * rows * taps : ceil_div(w.out, lanes) * rows * taps * 5;
  const int64_t together = w.out * (rows * ceil_div(taps, lanes) + 20);
  const int64_t columns = has_columns ? rows * ceil_div(w.in, lanes) + w.out * taps : INT64_MAX;
  if (columns < min_of(apart, together)) return Way::columns;
  return together < apart ? Way::window : Way::windows;
}

// of_long: the fold for long windows, which must know where an element was to say which came first.
template <class F, class Long>
void fold_windows(const PoolShape& given, const typename F::Storage* x, const F& f, const Long& of_long, int threads) {
  typedef typename F::Value T;
  const PoolShape shape = collapsed(given);
  const PoolAxis &d = shape.depth, &h = shape.height, &w = shape.width;
  const int64_t plane = d.in * h.in * w.in;
  const Way way = way_of(d, h, w, kLanes<T>);
  const Range whole = is_adaptive(w) && way == Way::window ? Range{0, w.out} : whole_windows(w);
  const bool is_plane = way == Way::window && d.in * h.in == 1 && w.out == 1 && w.kernel == w.in && !w.padding;
  const int64_t elements = shape.outer * shape.inner * (plane + d.out * h.out * w.out);
  Tabled windows;
  if (shape.inner == 1 && way == Way::columns) tabulate(w, f.counts_padding, windows);
  for_rows(shape.outer, d.out, h.out, elements, threads, [&](int64_t outer, int64_t od, int64_t oh) {
    const typename F::Storage* from = x + outer * plane * shape.inner;
    if (is_plane) return fold_plane(of_long, from, outer, plane);
    const Rows rows{shape, taps_of(d, od, f.counts_padding), taps_of(h, oh, f.counts_padding)};
    const int64_t at = ((outer * d.out + od) * h.out + oh) * w.out;
    if (shape.inner != 1) return fold_pixels(f, from, rows, at);
    if (way == Way::columns) return fold_columns(of_long, from, rows, windows, at, (shape.outer - outer) * plane);
    for (int64_t o = 0; o < whole.begin; o++) fold_window(f, from, rows, o, at);
    if (way == Way::window)
      fold_long_windows(of_long, from, rows, whole, at);
    else if (w.stride == 1)
      fold_row<1>(f, from, rows, whole, at);
    else if (w.stride == 2 && w.dilation == 1 && w.kernel >= 2)
      fold_row<2>(f, from, rows, whole, at);
    else
      fold_row<0>(f, from, rows, whole, at);
    for (int64_t o = whole.end; o < w.out; o++) fold_window(f, from, rows, o, at);
  });
}

}  // namespace

}  // namespace PF_ISA::pool
