// The gradient of windows, gathered: every element of the input asks the windows that it lies in, so that each is
// written once, in one order, and sums are kept in the arithmetic type. A share G of an output's gradient has
//   of(at, place, lanes)   what the outputs from `at` on give to the elements at these places
//   all(at, place, counted)  what one output gives to elements at many places
//   spread(at, axis, o, counted, row, part, sums)  adds what the window o along the width gives to a part of a row
//   ask_ahead(at)          for the memory of outputs that lie kAhead further
//   fill_plane(outer, size)  all of a plane of which one window was made
//   whole(sum, counted)    a sum of shares of windows with so many elements
#pragma once
#include "lanes.h"
#include "window.h"

namespace PF_ISA::pool {

namespace {

// The windows along depth and height that a row of the input lies in.
class Above {
 public:
  // first: output of the plane.
  Above(const PoolShape& shape, Range d, Range h, int64_t first, bool counts_padding)
      : shape(shape), d_(d), h_(h), first_(first), counts_padding_(counts_padding) {
    if ((d.end - d.begin) * (h.end - h.begin) > kMost) return;
    find([&](int64_t at, int64_t counted) { rows_[count_++] = {at, counted}; });
  }
  // body(first output of a row of windows, how many elements their means count along depth and height)
  template <class Body>
  PF_MEMBER void each(Body body) const {
    if (!count_) return find(body);
    for (int i = 0; i < count_; i++) body(rows_[i].at, rows_[i].counted);
  }
  const PoolShape& shape;

 private:
  template <class Body>
  PF_MEMBER void find(Body body) const {
    for (int64_t od = d_.begin; od < d_.end; od++) {
      const int64_t counted = taps_of(shape.depth, od, counts_padding_).counted;
      for (int64_t oh = h_.begin; oh < h_.end; oh++)
        body(first_ + (od * shape.height.out + oh) * shape.width.out,
             counted * taps_of(shape.height, oh, counts_padding_).counted);
    }
  }
  static constexpr int kMost = 9;  // rows that are worked out once
  struct Row {
    int64_t at, counted;
  } rows_[kMost];
  int count_ = 0;
  Range d_, h_;
  int64_t first_;
  bool counts_padding_;
};

constexpr int64_t kSpread = 256;

// The elements [begin, end) of a row that begins at place `row`, window by window.
template <class G>
void spread_row(const G& g, const Above& above, int64_t row, int64_t begin, int64_t end) {
  const PoolAxis& axis = above.shape.width;
  for (int64_t i = begin; i < end; i += kSpread) {
    const Range part = {i, min_of(i + kSpread, end)};
    const Range w = {windows_of(axis, part.begin).begin, windows_of(axis, part.end - 1).end};
    typename G::Value sums[kSpread];
    for (int64_t j = 0; j < part.end - part.begin; j++) sums[j] = 0;
    above.each([&](int64_t at, int64_t counted) {
      for (int64_t o = w.begin; o < w.end; o++) g.spread(at + o, axis, o, counted, row, part, sums);
    });
    for (int64_t j = part.begin; j < part.end; j++) put(g.dx + row + j, sums[j - part.begin]);
  }
}

// Element u * stride - padding + phase of a row for each lane u: it lies in the windows u, u - 1, ... as far as they
// reach.
template <class G, class Lanes>
PF_INLINE Vec<typename G::Value> gather_phase(const G& g, const Above& above, int64_t row, int64_t u, int64_t phase,
                                              Lanes lanes) {
  typedef typename G::Value T;
  const PoolAxis& axis = above.shape.width;
  const int64_t reach = (axis.kernel - 1) * axis.dilation;
  const Places<T> place = places_from<T>(row + u * axis.stride - axis.padding + phase, axis.stride);
  Vec<T> sum = {};
  above.each([&](int64_t at, int64_t counted) {
    Vec<T> share = {};
    for (int64_t back = 0; back * axis.stride + phase <= reach; back++) share += g.of(at + u - back, place, lanes);
    sum += g.whole(share, counted * axis.kernel);
  });
  return sum;
}

// The elements [begin * stride - padding, end * stride - padding) of a row, for windows kStride apart; 0: any stride.
template <int kStride, class G>
void gather_row(const G& g, const Above& above, int64_t row, Range u_range) {
  typedef typename G::Value T;
  const PoolAxis& axis = above.shape.width;
  for_lanes<T>(u_range.begin, u_range.end, [&](int64_t u, auto lanes) {
    typename G::Storage* to = g.dx + row + u * axis.stride - axis.padding;
    for (int64_t line = 0; line < kStride; line++) __builtin_prefetch((const char*)to + kAhead + line * 64, 1);
    above.each([&](int64_t at, int64_t) { g.ask_ahead(at + u); });
    if constexpr (kStride == 1) {
      store_lanes(to, gather_phase(g, above, row, u, 0, lanes), lanes);
    } else if constexpr (kStride == 2) {
      const Vec<T> even = gather_phase(g, above, row, u, 0, lanes), odd = gather_phase(g, above, row, u, 1, lanes);
      store_pairs(to, even, odd, lanes);
    } else {
      for (int64_t phase = 0; phase < axis.stride; phase++)
        store_apart(to + phase, axis.stride, gather_phase(g, above, row, u, phase, lanes), lanes);
    }
  });
}

// The same for windows that do not overlap along the width: a vector holds elements of one.
template <class G>
void gather_long_windows(const G& g, const Above& above, int64_t row, Range u_range) {
  typedef typename G::Value T;
  const PoolAxis& axis = above.shape.width;
  for (int64_t o = u_range.begin; o < u_range.end; o++) {
    const int64_t start = row + o * axis.stride - axis.padding;
    for_lanes<T>(start, start + axis.stride, [&](int64_t x, auto lanes) {
      const Places<T> place = places_from<T>(x, 1);
      const Places<T> is_inside = place < splat_place<T>(start + axis.kernel);
      Vec<T> sum = {};
      above.each([&](int64_t at, int64_t counted) { sum += g.all(at + o, place, counted * axis.kernel); });
      store_lanes(g.dx + x, select(is_inside, sum, Vec<T>{}), lanes);
    });
  }
}

// One row of an image of channels_last memory.
template <class G>
void gather_pixels(const G& g, const Above& above, int64_t row) {
  typedef typename G::Value T;
  const PoolAxis& axis = above.shape.width;
  const int64_t channels = above.shape.inner;
  for (int64_t i = 0; i < axis.in; i++) {
    const Range w = windows_of(axis, i);
    const auto gather_block = [&](int64_t c, auto vectors, auto lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      Vec<T> sum[kVectors] = {};
      above.each([&](int64_t at, int64_t counted) {
        for (int64_t o = w.begin; o < w.end; o++) {
          const int64_t all = counted * taps_of(axis, o, g.counts_padding).counted;
          PF_UNROLL
          for (int v = 0; v < kVectors; v++)
            sum[v] += g.whole(g.of((at + o) * channels + c + v * kLanes<T>, splat_place<T>(row + i), lanes), all);
        }
      });
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) store_lanes(g.dx + (row + i) * channels + c + v * kLanes<T>, sum[v], lanes);
    };
    int64_t c = 0;
    for (; c + kChannelVectors * kLanes<T> <= channels; c += kChannelVectors * kLanes<T>)
      gather_block(c, Vectors<kChannelVectors>{}, AllLanes{});
    for_lanes<T>(c, channels, [&](int64_t c, auto lanes) { gather_block(c, Vectors<1>{}, lanes); });
  }
}

template <class G>
void gather_images(const PoolShape& shape, const G& of_all, int threads) {
  const PoolAxis &d = shape.depth, &h = shape.height, &w = shape.width;
  const int64_t plane = d.in * h.in * w.in, outputs = d.out * h.out * w.out;
  for_rows(shape.outer, d.in, h.in, shape.outer * shape.inner * (plane + outputs), threads,
           [&](int64_t outer, int64_t z, int64_t y) {
             G g = of_all;
             g.dx += outer * plane * shape.inner;
             gather_pixels(g, Above(shape, windows_of(d, z), windows_of(h, y), outer * outputs, g.counts_padding),
                           (z * h.in + y) * w.in);
           });
}

template <class G>
void gather_windows(const PoolShape& given, const G& of_all, int threads) {
  if (given.inner != 1) return gather_images(given, of_all, threads);
  const PoolShape shape = collapsed(given);
  const PoolAxis &d = shape.depth, &h = shape.height, &w = shape.width;
  const int64_t plane = d.in * h.in * w.in, outputs = d.out * h.out * w.out;
  // The elements u * stride - padding + phase, for whole vectors of u: all phases are in the row, and so are the
  // windows.
  Range u = {0, 0};
  if (!is_adaptive(w)) {
    const Range windows = whole_windows(w);
    u.begin = max_of(windows.begin + (w.kernel - 1) * w.dilation / w.stride, ceil_div(w.padding, w.stride));
    u.end = max_of(u.begin, min_of(windows.end, (w.in + w.padding) / w.stride));
  }
  const bool is_apart = w.stride > 2 && w.kernel <= w.stride && w.dilation == 1;
  const Range vectors = u.begin < u.end ? Range{u.begin * w.stride - w.padding, u.end * w.stride - w.padding} : Range{};
  const bool is_plane = d.in * h.in == 1 && w.out == 1 && w.kernel == w.in && !w.padding;
  for_rows(shape.outer, d.in, h.in, shape.outer * shape.inner * (plane + outputs), threads,
           [&](int64_t outer, int64_t z, int64_t y) {
             G g = of_all;
             g.dx += outer * plane * shape.inner;
             if (is_plane) return g.fill_plane(outer, w.in);
             const Above above(shape, windows_of(d, z), windows_of(h, y), outer * outputs, g.counts_padding);
             const int64_t row = (z * h.in + y) * w.in;
             spread_row(g, above, row, 0, vectors.begin);
             if (is_apart)
               gather_long_windows(g, above, row, u);
             else if (w.stride == 1)
               gather_row<1>(g, above, row, u);
             else if (w.stride == 2)
               gather_row<2>(g, above, row, u);
             else
               gather_row<0>(g, above, row, u);
             spread_row(g, above, row, vectors.end, w.in);
           });
}

}  // namespace

}  // namespace PF_ISA::pool
