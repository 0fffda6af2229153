// 3x3 convolutions of stride 1 by F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
// (2016), section 4.1: four results from a patch of 4x4 by 16 products instead of 36. Patches d, filters g and sums m
// are transformed, B^T d B, G g G^T and A^T m A; in between lie 16 matrix products over the channels.
#pragma once
#include "columns.h"
#include "rows.h"

namespace PF_ISA::conv {

namespace {

constexpr int kPatch = 4, kPlaces = kPatch * kPatch;

template <class V>
PF_INLINE void transform_patch(V (&d)[kPatch][kPatch]) {
  PF_UNROLL
  for (int j = 0; j < kPatch; j++) {
    const V a = d[0][j] - d[2][j], b = d[1][j] + d[2][j], c = d[2][j] - d[1][j], e = d[1][j] - d[3][j];
    d[0][j] = a, d[1][j] = b, d[2][j] = c, d[3][j] = e;
  }
  PF_UNROLL
  for (int i = 0; i < kPatch; i++) {
    const V a = d[i][0] - d[i][2], b = d[i][1] + d[i][2], c = d[i][2] - d[i][1], e = d[i][1] - d[i][3];
    d[i][0] = a, d[i][1] = b, d[i][2] = c, d[i][3] = e;
  }
}

template <class V>
PF_INLINE void transform_filter(const V (&g)[3][3], V (&u)[kPatch][kPatch]) {
  const V a_half = splat<V>(0.5);
  V half[kPatch][3];
  PF_UNROLL
  for (int j = 0; j < 3; j++) {
    const V outer = g[0][j] + g[2][j];
    half[0][j] = g[0][j];
    half[1][j] = (outer + g[1][j]) * a_half;
    half[2][j] = (outer - g[1][j]) * a_half;
    half[3][j] = g[2][j];
  }
  PF_UNROLL
  for (int i = 0; i < kPatch; i++) {
    const V outer = half[i][0] + half[i][2];
    u[i][0] = half[i][0];
    u[i][1] = (outer + half[i][1]) * a_half;
    u[i][2] = (outer - half[i][1]) * a_half;
    u[i][3] = half[i][2];
  }
}

// The four results of sums m, which lie `apart` from one another.
template <class T>
PF_INLINE void transform_sums(const T* m, int64_t apart, Vec<T> (&y)[2][2]) {
  Vec<T> half[2][kPatch];
  PF_UNROLL
  for (int j = 0; j < kPatch; j++) {
    const Vec<T> a = load(m + j * apart), b = load(m + (kPatch + j) * apart), c = load(m + (2 * kPatch + j) * apart),
                 d = load(m + (3 * kPatch + j) * apart);
    half[0][j] = a + b + c;
    half[1][j] = b - c - d;
  }
  PF_UNROLL
  for (int i = 0; i < 2; i++) {
    y[i][0] = half[i][0] + half[i][1] + half[i][2];
    y[i][1] = half[i][1] - half[i][2] - half[i][3];
  }
}

// Lanes of two vectors in turn, of the first half and of the second.
template <int kCount>
struct LowInTurn {
  static constexpr int lane(int i) { return i / 2 + (i & 1) * kCount; }
};
template <int kCount>
struct HighInTurn {
  static constexpr int lane(int i) { return kCount / 2 + i / 2 + (i & 1) * kCount; }
};

// The same sum over patches: what lies at patch t are results 2t and 2t + 1 of each dimension.
template <class S>
PF_INLINE Correlation<S> patches_of(Correlation<S> p) {
  for (int i = 1; i < kConvDims; i++) {
    Axis& a = p.axes[i];
    a.count = ceil_div(a.count, 2);
    a.to_step *= 2;
    a.from_step *= 2;
    a.taps = kPatch;
  }
  return p;
}

template <class S>
struct WinogradPlan {
  typedef Acc<S> T;
  bool by_rows;
  int threads;
  int64_t width;   // patches of a task
  int64_t tasks;   // of a group
  int64_t height;  // rows, or columns, whose sums are in work at a time
  int64_t packed_bytes, thread_bytes;

  static WinogradPlan plan(const Correlation<S>& p, bool by_rows, int num_threads) {
    constexpr int64_t panel = gemm::kPanel<T>;
    WinogradPlan plan;
    plan.by_rows = by_rows;
    plan.threads = p.threads(num_threads);
    const int64_t patches = patches_of(p).positions();
    if (by_rows) {
      constexpr int64_t fits = 6144, most = 96, least = 48;  // fits channels: 384 KB of patches
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
    plan.packed_bytes = round_up(p.groups * kPlaces * rows * p.channels * sizeof(T), 64);
    const int64_t gathered = by_rows ? kPlaces * p.channels + panel : (kPlaces + 1) * panel;
    const int64_t sums = kPlaces * plan.width * plan.height + panel, results = 4 * panel;
    plan.thread_bytes = round_up(
        (gathered + kPlaces * plan.width * p.channels + sums + results) * sizeof(T) + plan.width * sizeof(Place), 64);
    return plan;
  }
  int64_t bytes() const { return threads * thread_bytes; }
};

// The transformed weight: [group][place][row][channel], or by rows [group][place][panel][channel][kPanel], zeros in
// rows that are not there. A vector is of filters that are adjacent in the result.
template <class S, class T>
void transform_filters(const Correlation<S>& p, const WinogradPlan<S>& plan, T* out) {
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>;
  const int64_t rows = plan.by_rows ? round_up(p.rows, panel) : p.rows, place_stride = rows * p.channels;
  const int64_t outer = plan.by_rows ? rows / lanes : rows,
                inner = plan.by_rows ? p.channels : ceil_div(p.channels, lanes);
  const int64_t apart = plan.by_rows ? p.weight_row : p.weight_channel;
  int64_t taps[9];
  for (int t = 0; t < 9; t++) taps[t] = p.weight_at(0, t / 3, t % 3);
  parallel_ranges(p.groups * outer, 1, plan.threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t group = i / outer, row = i % outer * (plan.by_rows ? lanes : 1);
      for (int64_t n = 0; n < inner; n++) {
        const int64_t channel = n * (plan.by_rows ? 1 : lanes);
        const int64_t there = plan.by_rows ? p.rows - row : p.channels - channel;
        const S* from = p.weight + group * p.weight_group + row * p.weight_row + channel * p.weight_channel;
        T elements[9][lanes] __attribute__((aligned(64)));
        for (int64_t l = 0; l < lanes; l++, from += apart)
          for (int t = 0; t < 9; t++) elements[t][l] = l < there ? get(from + taps[t]) : T(0);
        Vec<T> g[3][3], u[kPatch][kPatch];
        PF_UNROLL
        for (int t = 0; t < 9; t++) g[t / 3][t % 3] = load(elements[t]);
        transform_filter(g, u);
        T* to = out + group * kPlaces * place_stride;
        to += plan.by_rows ? (row / panel * p.channels + channel) * panel + row % panel : row * p.channels + channel;
        PF_UNROLL
        for (int k = 0; k < kPlaces; k++)
          store_n(to + k * place_stride, u[k / kPatch][k % kPatch], plan.by_rows ? lanes : there);
      }
    }
  });
}

// One task by columns: a panel of patches, all rows.
template <class S, class T>
void winograd_columns(const Correlation<S>& p, const Correlation<S>& patches, const WinogradPlan<S>& plan,
                      const T* filters, int64_t group, int64_t first, char* memory, const FinishRows<S>& finish) {
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>;
  const int64_t columns = min_of(panel, patches.positions() - first);
  const int vectors = (int)ceil_div(columns, lanes);
  const S* from = p.from + group * p.channels * p.from_stride.channel;
  T* gathered = (T*)memory;
  T* transformed = gathered + (kPlaces + 1) * panel;          // [place][channel][kPanel]
  T* sums = transformed + kPlaces * p.channels * panel;       // [place][row][kPanel]
  T* results = sums + kPlaces * plan.height * panel + panel;  // [2][2 kPanel]
  const Runs<T> runs(patches, first, columns);
  for (int64_t c = 0; c < p.channels; c++) {
    gather_columns(patches, from, runs, c * kPlaces, (c + 1) * kPlaces, gathered);
    for (int v = 0; v < vectors; v++) {
      Vec<T> d[kPatch][kPatch];
      PF_UNROLL
      for (int k = 0; k < kPlaces; k++) d[k / kPatch][k % kPatch] = load(gathered + k * panel + v * lanes);
      transform_patch(d);
      PF_UNROLL
      for (int k = 0; k < kPlaces; k++)
        store(transformed + (k * p.channels + c) * panel + v * lanes, d[k / kPatch][k % kPatch]);
    }
  }
  const int64_t h_step = p.axes[1].to_step * p.to_stride.spatial[1],
                w_step = p.axes[2].to_step * p.to_stride.spatial[2];
  for (int64_t row = 0; row < p.rows; row += plan.height) {
    const int64_t row_count = min_of(plan.height, p.rows - row);
    for (int64_t place = 0; place < kPlaces; place++) {
      const T* a = filters + ((group * kPlaces + place) * p.rows + row) * p.channels;
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
        Vec<T> y[2][2];
        transform_sums(sums + i * panel + v * lanes, plan.height * panel, y);
        PF_UNROLL
        for (int r = 0; r < 2; r++) {
          T* to = results + r * 2 * panel + v * 2 * lanes;
          store(to, shuffle<LowInTurn<lanes>>(y[r][0], y[r][1]));
          store(to + lanes, shuffle<HighInTurn<lanes>>(y[r][0], y[r][1]));
        }
      }
      Place place = Place::at(patches, first);
      for (int64_t n = 0; n < runs.count; n++) {
        const Run& run = runs.run[n];
        const int64_t rows_left = p.axes[1].count - 2 * place.j[1];
        const int64_t there = min_of(2 * run.count, p.axes[2].count - 2 * place.j[2]);
        for (int64_t r = 0; r < min_of(2, rows_left); r++) {
          const int64_t to = run.to + channel * p.to_stride.channel + r * h_step;
          finish({results + r * 2 * panel + 2 * run.column, 1, 0, there, to, 0, w_step, channel, false});
        }
        place.next_row(patches);
      }
    }
  }
}

// One task by rows: plan.width patches, all channels of the result, a panel of them at a time.
template <class S, class T>
void winograd_rows(const Correlation<S>& p, const Correlation<S>& patches, const WinogradPlan<S>& plan,
                   const T* filters, int64_t group, int64_t first, char* memory, const FinishRows<S>& finish) {
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>;
  const int64_t row_count = min_of(plan.width, patches.positions() - first), panels = ceil_div(p.rows, panel);
  const S* from = p.from + group * p.channels * p.from_stride.channel;
  T* gathered = (T*)memory;
  T* transformed = gathered + kPlaces * p.channels + panel;   // [place][patch][channel]
  T* sums = transformed + kPlaces * plan.width * p.channels;  // [place][patch][kPanel]
  T* results = sums + kPlaces * plan.width * panel + panel;   // [2][2][kPanel]
  Place* places = (Place*)(results + 4 * panel);
  const Pieces pieces(patches, 0, kPlaces * p.channels);
  for (int64_t i = 0; i < row_count; i++) {
    places[i] = Place::at(patches, first + i);
    gather_rows(patches, from, first + i, 1, pieces, 0, gathered);
    for (int64_t c = 0; c < p.channels; c += lanes) {
      Vec<T> d[kPatch][kPatch];
      PF_UNROLL
      for (int k = 0; k < kPlaces; k++) d[k / kPatch][k % kPatch] = load(gathered + k * p.channels + c);
      transform_patch(d);
      PF_UNROLL
      for (int k = 0; k < kPlaces; k++)
        store_n(transformed + (k * plan.width + i) * p.channels + c, d[k / kPatch][k % kPatch], p.channels - c);
    }
  }
  const int64_t h_step = p.axes[1].to_step * p.to_stride.spatial[1],
                w_step = p.axes[2].to_step * p.to_stride.spatial[2];
  for (int64_t n = 0; n < panels; n++) {
    const int64_t column = n * panel, columns = min_of(panel, p.rows - column), channel = group * p.rows + column;
    const int vectors = (int)ceil_div(columns, lanes);
    for (int64_t place = 0; place < kPlaces; place++) {
      const T* b = filters + ((group * kPlaces + place) * panels + n) * p.channels * panel;
      const T* b_next = b + panels * p.channels * panel;  // of the next place
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
      const int64_t rows_left = min_of(2, p.axes[1].count - 2 * places[i].j[1]);
      const int64_t columns_left = min_of(2, p.axes[2].count - 2 * places[i].j[2]);
      for (int64_t c = 0; c < columns; c += lanes) {
        Vec<T> y[2][2];
        transform_sums(sums + i * panel + c, plan.width * panel, y);
        PF_UNROLL
        for (int r = 0; r < 4; r++) store(results + r * panel + c, y[r / 2][r % 2]);
      }
      for (int64_t h = 0; h < rows_left; h++)
        finish({results + 2 * h * panel, columns_left, panel, columns, to + h * h_step + channel, w_step, 1, channel,
                true});
    }
  }
}

template <class S>
void winograd_product(const Correlation<S>& p, bool by_rows, PackedWeight packed, void* workspace,
                      const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const WinogradPlan<S> plan = WinogradPlan<S>::plan(p, by_rows, num_threads);
  const Correlation<S> patches = patches_of(p);
  T* filters = (T*)packed.memory;
  if (!packed.is_done) transform_filters(p, plan, filters);
  parallel_tasks(p.groups * plan.tasks, plan.threads, [&](int64_t task, int thread) {
    char* memory = (char*)workspace + thread * plan.thread_bytes;
    const int64_t group = task / plan.tasks, first = task % plan.tasks * plan.width;
    if (by_rows)
      winograd_rows<S, T>(p, patches, plan, filters, group, first, memory, finish);
    else
      winograd_columns<S, T>(p, patches, plan, filters, group, first, memory, finish);
  });
}

}  // namespace

}  // namespace PF_ISA::conv
