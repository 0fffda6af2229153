// 3x3 convolutions of stride 1 by F(m x m, 3x3): m x m results from a patch of m + 2 a side; and by F(2x2, 2x2) the
// phases of the input's gradient of a 4x4 kernel of stride 2, which have two taps a side. Patches, filters and sums are
// transformed (winograd_transforms.h); in between lie as many matrix products over the channels as a patch has places.
// Infinities, NaN and what overflows on the way spoil a patch's results, of which a tap by tap sum has some that are
// finite: where a result is not, all are computed again so.
#pragma once
#include <atomic>

#include "columns.h"
#include "rows.h"
#include "winograd_transforms.h"

namespace PF_ISA::conv {

namespace {

// In two dimensions: `one` along columns, then along rows, from [kFrom][kFrom] to [kTo][kTo].
template <int kFrom, int kTo, class V, class One>
PF_INLINE void transform_square(const V (&from)[kFrom][kFrom], V (&to)[kTo][kTo], One one) {
  V half[kTo][kFrom];
  PF_UNROLL
  for (int j = 0; j < kFrom; j++) {
    V column[kFrom], changed[kTo];
    PF_UNROLL
    for (int i = 0; i < kFrom; i++) column[i] = from[i][j];
    one(column, changed);
    PF_UNROLL
    for (int i = 0; i < kTo; i++) half[i][j] = changed[i];
  }
  PF_UNROLL
  for (int i = 0; i < kTo; i++) one(half[i], to[i]);
}

// The results of sums m, which lie `apart` from one another. Adds 0 to `spoilt` where they are finite, NaN elsewhere.
template <class W, class T>
PF_INLINE void transform_sums(const T* m, int64_t apart, Vec<T> (&y)[W::results][W::results], Vec<T>& spoilt) {
  typedef Vec<T> V;
  V sums[W::patch][W::patch];
  PF_UNROLL
  for (int k = 0; k < W::patch * W::patch; k++) sums[k / W::patch][k % W::patch] = load(m + k * apart);
  transform_square(sums, y, [](const V(&from)[W::patch], V(&to)[W::results]) { W::of_sums(from, to); });
  PF_UNROLL
  for (int k = 0; k < W::results * W::results; k++) spoilt += y[k / W::results][k % W::results] * V{};
}

template <class T>
PF_INLINE bool is_any_spoilt(Vec<T> spoilt, int64_t count) {
  T lanes[kLanes<T>] __attribute__((aligned(64)));
  store(lanes, spoilt);
  for (int64_t i = 0; i < count; i++)
    if (lanes[i] != 0) return true;
  return false;
}

// The same sum over patches: what lies at patch t are results m t to m t + m - 1 of each dimension.
template <class W, class S>
PF_INLINE Correlation<S> patches_of(Correlation<S> p) {
  for (int i = 1; i < kConvDims; i++) {
    Axis& a = p.axes[i];
    a.count = ceil_div(a.count, W::results);
    a.to_step *= W::results;
    a.from_step *= W::results;
    a.taps = W::patch;
  }
  return p;
}

template <class W, class S>
struct WinogradPlan {
  typedef Acc<S> T;
  static constexpr int kPlaces = W::patch * W::patch;
  static constexpr int64_t kAtOnce =
      kPlaces > 16 ? kManyChannels : 72 / kPlaces;  // channels that columns gather, in L1
  bool by_rows;
  int threads;
  int64_t width;         // patches of a task
  int64_t tasks;         // of a group
  int64_t height;        // rows, or columns, whose sums are in work at a time
  int64_t place_stride;  // of the transformed weight
  int64_t packed_bytes, thread_bytes;

  static WinogradPlan plan(const Correlation<S>& p, bool by_rows, int num_threads) {
    constexpr int64_t panel = gemm::kPanel<T>;
    WinogradPlan plan;
    plan.by_rows = by_rows;
    plan.threads = p.threads(num_threads);
    const int64_t patches = patches_of<W>(p).positions();
    if (by_rows) {
      constexpr int64_t fits = 98304 / kPlaces, most = 96, least = 48;  // fits channels: 384 KB of patches
      int64_t width = min_of(max_of(fits / max_of(p.channels, 1), least), most);
      if (plan.threads > 1) width = min_of(width, ceil_div(patches * p.groups, 2 * plan.threads));
      plan.width = round_up(max_of(width, 1), gemm::kTileRows);
      plan.height = panel;
    } else {
      plan.width = panel;
      plan.height = min_of(round_up(p.rows, gemm::kTileRows), 8 * gemm::kTileRows);
    }
    plan.tasks = ceil_div(patches, plan.width);
    const int64_t rows = by_rows ? round_up(p.rows, panel) : p.rows;
    // A line more: a power of two apart, the places that are written together fall into one set of a cache.
    plan.place_stride = rows * p.channels + kLine<T>;
    plan.packed_bytes = round_up(p.groups * kPlaces * plan.place_stride * sizeof(T), 64);
    const int64_t gathered = by_rows ? kPlaces * p.channels + panel : (kAtOnce * kPlaces + 1) * panel;
    const int64_t sums = kPlaces * plan.width * plan.height + panel, results = W::results * W::results * panel;
    plan.thread_bytes = round_up(
        (gathered + kPlaces * plan.width * p.channels + sums + results) * sizeof(T) + plan.width * sizeof(Place), 64);
    return plan;
  }
  int64_t bytes() const { return threads * thread_bytes; }
};

// The transformed weight: [group][place][row][channel], or by rows [group][place][panel][channel][kPanel], zeros in
// rows that are not there. A vector is of filters that are adjacent in the result. Zen 4, one thread, the four phases
// of 512 to 256 channels of 4x4: 20 ms where neither the next filters were asked for nor a line kept places apart, 5
// with both; of a weight with its channels last 16 and 2.
template <class W, class S, class T>
void transform_filters(const Correlation<S>& p, const WinogradPlan<W, S>& plan, T* out) {
  constexpr int kPlaces = W::patch * W::patch;
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>;
  constexpr int64_t kAhead = 4;  // vectors: prefetchers do not follow what lies between two of them
  const int64_t rows = plan.by_rows ? round_up(p.rows, panel) : p.rows, place_stride = plan.place_stride;
  const int64_t outer = plan.by_rows ? rows / lanes : rows,
                inner = plan.by_rows ? p.channels : ceil_div(p.channels, lanes);
  const int64_t apart = plan.by_rows ? p.weight_row : p.weight_channel;
  const int64_t next = plan.by_rows ? p.weight_channel : lanes * p.weight_channel;
  constexpr int side = W::taps, count = side * side;
  int64_t taps[count];
  for (int t = 0; t < count; t++) taps[t] = p.weight_at(0, t / side, t % side);
  parallel_ranges(p.groups * outer, 1, plan.threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t group = i / outer, row = i % outer * (plan.by_rows ? lanes : 1);
      for (int64_t n = 0; n < inner; n++) {
        const int64_t channel = n * (plan.by_rows ? 1 : lanes);
        const int64_t there = plan.by_rows ? p.rows - row : p.channels - channel;
        const S* from = p.weight + group * p.weight_group + row * p.weight_row + channel * p.weight_channel;
        typedef Vec<T> V;
        V g[side][side], u[W::patch][W::patch];
        if (apart == 1) {
          for (int t = 0; t < count; t++) __builtin_prefetch(from + kAhead * next + taps[t]);
          PF_UNROLL
          for (int t = 0; t < count; t++) g[t / side][t % side] = load_n(from + taps[t], min_of(lanes, there));
        } else {
          if (apart <= kLine<T>) prefetch_rows(from + kAhead * next + taps[0], 0, 1, lanes * apart);
          T elements[count][lanes] __attribute__((aligned(64)));
          for (int64_t l = 0; l < lanes; l++, from += apart)
            for (int t = 0; t < count; t++) elements[t][l] = l < there ? get(from + taps[t]) : T(0);
          PF_UNROLL
          for (int t = 0; t < count; t++) g[t / side][t % side] = load(elements[t]);
        }
        transform_square(g, u, [](const V(&from)[side], V(&to)[W::patch]) { W::of_filter(from, to); });
        T* to = out + group * kPlaces * place_stride;
        to += plan.by_rows ? (row / panel * p.channels + channel) * panel + row % panel : row * p.channels + channel;
        PF_UNROLL
        for (int k = 0; k < kPlaces; k++)
          store_n(to + k * place_stride, u[k / W::patch][k % W::patch], plan.by_rows ? lanes : there);
      }
    }
  });
}

// A patch of `at(place)`, transformed.
template <class W, class V, class At>
PF_INLINE void transform_patch(At at, V (&v)[W::patch][W::patch]) {
  V d[W::patch][W::patch];
  PF_UNROLL
  for (int k = 0; k < W::patch * W::patch; k++) d[k / W::patch][k % W::patch] = load(at(k));
  transform_square(d, v, [](const V(&from)[W::patch], V(&to)[W::patch]) {
    PF_UNROLL
    for (int i = 0; i < W::patch; i++) to[i] = from[i];
    W::of_patch(to);
  });
}

template <int kPatch, class V>
PF_INLINE void scale_patch(V (&d)[kPatch][kPatch], V scale) {
  PF_UNROLL
  for (int k = 0; k < kPatch * kPatch; k++) d[k / kPatch][k % kPatch] *= scale;
}

// Rows of results, one for each vector of a patch, as they follow one another in memory.
template <class T>
PF_INLINE void store_in_turn(const Vec<T> (&y)[2], T* to) {
  constexpr int lanes = kLanes<T>;
  store(to, shuffle<InTurn<lanes, 0>>(y[0], y[1]));
  store(to + lanes, shuffle<InTurn<lanes, lanes / 2>>(y[0], y[1]));
}
template <class T>
PF_INLINE void store_in_turn(const Vec<T> (&y)[4], T* to) {
  constexpr int lanes = kLanes<T>;
  store_in_turn<T>({shuffle<InTurn<lanes, 0>>(y[0], y[2]), shuffle<InTurn<lanes, 0>>(y[1], y[3])}, to);
  store_in_turn<T>({shuffle<InTurn<lanes, lanes / 2>>(y[0], y[2]), shuffle<InTurn<lanes, lanes / 2>>(y[1], y[3])},
                   to + 2 * lanes);
}

// One task by columns: a panel of patches, all rows. False where a result is not finite.
template <class W, class S, class T>
bool winograd_columns(const Correlation<S>& p, const Correlation<S>& patches, const WinogradPlan<W, S>& plan,
                      const T* filters, int64_t group, int64_t first, char* memory, const FinishRows<S>& finish) {
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>, m = W::results, kPlaces = W::patch * W::patch;
  const int64_t columns = min_of(panel, patches.positions() - first);
  const int vectors = (int)ceil_div(columns, lanes);
  const S* from = p.from + group * p.channels * p.from_stride.channel;
  T* gathered = (T*)memory;
  constexpr int64_t at_once = WinogradPlan<W, S>::kAtOnce;
  T* transformed = gathered + (at_once * kPlaces + 1) * panel;  // [place][channel][kPanel]
  T* sums = transformed + kPlaces * p.channels * panel;         // [place][row][kPanel]
  T* results = sums + kPlaces * plan.height * panel + panel;    // [m][m kPanel]
  const Runs<T> runs(patches, first, columns);
  T style[panel + lanes] __attribute__((aligned(64)));
  for (int64_t c = 0; c < p.channels; c++) {
    const T* patch = gathered + c % at_once * kPlaces * panel;
    if (c % at_once == 0)
      gather_columns(patches, from, runs, c * kPlaces, min_of(c + at_once, p.channels) * kPlaces, gathered);
    if (p.style) style_columns(p, runs, group, c, style);
    for (int v = 0; v < vectors; v++) {
      Vec<T> d[W::patch][W::patch];
      transform_patch<W>([&](int k) { return patch + k * panel + v * lanes; }, d);
      if (p.style) scale_patch(d, load(style + v * lanes));
      PF_UNROLL
      for (int k = 0; k < kPlaces; k++)
        store(transformed + (k * p.channels + c) * panel + v * lanes, d[k / W::patch][k % W::patch]);
    }
  }
  const int64_t h_step = p.axes[1].to_step * p.to_stride.spatial[1],
                w_step = p.axes[2].to_step * p.to_stride.spatial[2];
  Vec<T> spoilt[gemm::kPanel<T> / lanes] = {};
  for (int64_t row = 0; row < p.rows; row += plan.height) {
    const int64_t row_count = min_of(plan.height, p.rows - row);
    for (int64_t place = 0; place < kPlaces; place++) {
      const T* a = filters + (group * kPlaces + place) * plan.place_stride + row * p.channels;
      for (int64_t k = 0; k < p.channels; k += kChunk) {
        const int64_t chunk = min_of(kChunk, p.channels - k);
        const T* b = transformed + (place * p.channels + k) * panel;
        for (int64_t i = 0, count; i < row_count; i += count) {
          count = gemm::next_tile_rows(row_count - i);
          gemm::tile_of<T, gemm::Lies::by_row>((int)count, vectors)(chunk, a + i * p.channels + k, p.channels, b,
                                                                    sums + (place * plan.height + i) * panel, k == 0);
        }
      }
    }
    for (int64_t i = 0; i < row_count; i++) {
      const int64_t channel = group * p.rows + row + i;
      for (int v = 0; v < vectors; v++) {
        Vec<T> y[m][m];
        transform_sums<W>(sums + i * panel + v * lanes, plan.height * panel, y, spoilt[v]);
        PF_UNROLL
        for (int r = 0; r < m; r++) store_in_turn<T>(y[r], results + m * (r * panel + v * lanes));
      }
      Place place = Place::at(patches, first);
      for (int64_t n = 0; n < runs.count; n++) {
        const Run& run = runs.run[n];
        const int64_t rows_left = p.axes[1].count - m * place.j[1];
        const int64_t there = min_of(m * run.count, p.axes[2].count - m * place.j[2]);
        for (int64_t r = 0; r < min_of(m, rows_left); r++) {
          const int64_t to = run.to + channel * p.to_stride.channel + r * h_step;
          const int64_t number = (m * place.j[1] + r) * p.axes[2].count + m * place.j[2];
          finish(
              {results + m * (r * panel + run.column), 1, 0, there, to, 0, w_step, channel, false, 0, place.n, number});
        }
        place.next_row(patches);
      }
    }
  }
  for (int v = 0; v < vectors; v++)
    if (is_any_spoilt<T>(spoilt[v], min_of(lanes, columns - v * lanes))) return false;
  return true;
}

// One task by rows: plan.width patches, all channels of the result, a panel of them at a time. False as above.
template <class W, class S, class T>
bool winograd_rows(const Correlation<S>& p, const Correlation<S>& patches, const WinogradPlan<W, S>& plan,
                   const T* filters, int64_t group, int64_t first, char* memory, const FinishRows<S>& finish) {
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>, m = W::results, kPlaces = W::patch * W::patch;
  Vec<T> spoilt = {};
  const int64_t row_count = min_of(plan.width, patches.positions() - first), panels = ceil_div(p.rows, panel);
  const S* from = p.from + group * p.channels * p.from_stride.channel;
  T* gathered = (T*)memory;
  T* transformed = gathered + kPlaces * p.channels + panel;   // [place][patch][channel]
  T* sums = transformed + kPlaces * plan.width * p.channels;  // [place][patch][kPanel]
  T* results = sums + kPlaces * plan.width * panel + panel;   // [m][m][kPanel]
  Place* places = (Place*)(results + m * m * panel);
  const Pieces pieces(patches, 0, kPlaces * p.channels);
  for (int64_t i = 0; i < row_count; i++) {
    places[i] = Place::at(patches, first + i);
    gather_rows(patches, from, first + i, 1, pieces, 0, gathered);
    for (int64_t c = 0; c < p.channels; c += lanes) {
      Vec<T> d[W::patch][W::patch];
      transform_patch<W>([&](int k) { return gathered + k * p.channels + c; }, d);
      if (p.style) scale_patch(d, load_n(p.style_of(places[i].n, group) + c, p.channels - c));
      PF_UNROLL
      for (int k = 0; k < kPlaces; k++)
        store_n(transformed + (k * plan.width + i) * p.channels + c, d[k / W::patch][k % W::patch], p.channels - c);
    }
  }
  const int64_t h_step = p.axes[1].to_step * p.to_stride.spatial[1],
                w_step = p.axes[2].to_step * p.to_stride.spatial[2];
  for (int64_t n = 0; n < panels; n++) {
    const int64_t column = n * panel, columns = min_of(panel, p.rows - column), channel = group * p.rows + column;
    const int vectors = (int)ceil_div(columns, lanes);
    for (int64_t place = 0; place < kPlaces; place++) {
      const T* b = filters + (group * kPlaces + place) * plan.place_stride + n * p.channels * panel;
      const T* b_next = b + plan.place_stride;  // of the next place
      const int64_t share = place + 1 < kPlaces ? ceil_div(p.channels * panel * gemm::kTileRows, row_count) : 0;
      for (int64_t k = 0; k < p.channels; k += kChunk) {
        const int64_t chunk = min_of(kChunk, p.channels - k);
        for (int64_t i = 0, count; i < row_count; i += count) {
          count = gemm::next_tile_rows(row_count - i);
          if (k == 0) prefetch_far(b_next + i / gemm::kTileRows * share, share);
          const T* a = transformed + (place * plan.width + i) * p.channels + k;
          gemm::tile_of<T, gemm::Lies::by_row>((int)count, vectors)(chunk, a, p.channels, b + k * panel,
                                                                    sums + (place * plan.width + i) * panel, k == 0);
        }
      }
    }
    for (int64_t i = 0; i < row_count; i++) {
      const int64_t to = places[i].to(patches);
      const int64_t rows_left = min_of(m, p.axes[1].count - m * places[i].j[1]);
      const int64_t columns_left = min_of(m, p.axes[2].count - m * places[i].j[2]);
      for (int64_t c = 0; c < columns; c += lanes) {
        Vec<T> y[m][m];
        transform_sums<W>(sums + i * panel + c, plan.width * panel, y, spoilt);
        PF_UNROLL
        for (int r = 0; r < m * m; r++) store(results + r * panel + c, y[r / m][r % m]);
      }
      for (int64_t h = 0; h < rows_left; h++)
        finish({results + m * h * panel, columns_left, panel, columns, to + h * h_step + channel, w_step, 1, channel,
                true, 0, places[i].n, (m * places[i].j[1] + h) * p.axes[2].count + m * places[i].j[2]});
    }
  }
  return !is_any_spoilt<T>(spoilt, lanes);
}

// False where a result is not finite: then all results are to be computed otherwise.
template <class W, class S>
bool winograd_product(const Correlation<S>& p, bool by_rows, PackedWeight packed, void* workspace,
                      const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const WinogradPlan<W, S> plan = WinogradPlan<W, S>::plan(p, by_rows, num_threads);
  const Correlation<S> patches = patches_of<W>(p);
  T* filters = (T*)packed.memory;
  if (!packed.is_done) transform_filters(p, plan, filters);
  std::atomic<bool> is_finite{true};
  parallel_tasks(p.groups * plan.tasks, plan.threads, [&](int64_t task, int thread) {
    if (!is_finite.load(std::memory_order_relaxed)) return;
    char* memory = (char*)workspace + thread * plan.thread_bytes;
    const int64_t group = task / plan.tasks, first = task % plan.tasks * plan.width;
    bool is_task_finite = false;
    if constexpr (W::taps == 3)  // phases are of pixels
      if (!by_rows) is_task_finite = winograd_columns(p, patches, plan, filters, group, first, memory, finish);
    if (by_rows) is_task_finite = winograd_rows(p, patches, plan, filters, group, first, memory, finish);
    if (!is_task_finite) is_finite.store(false, std::memory_order_relaxed);
  });
  return is_finite.load();
}

}  // namespace

}  // namespace PF_ISA::conv
