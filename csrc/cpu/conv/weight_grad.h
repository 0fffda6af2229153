// The gradient of the weight: dweight[row, column] = sum over results of dy[row, result] from[column, result], a panel
// of columns (steps of the forward's sum) at a time. All sums of a task stay in its strip while results pass by, and
// every element is summed by one thread in one order.
#pragma once
#include "columns.h"
#include "rows.h"

namespace PF_ISA::conv {

namespace {

// dy as a matrix [rows, results] of one group: dense, in one of two orders, of images.
template <class S>
struct Gradient {
  const S* at;
  int64_t image, row, result;  // strides
};

template <class S>
struct WeightGradPlan {
  typedef Acc<S> T;
  int threads;
  bool has_planes;  // NCHW
  int64_t panels, block_rows, blocks;
  int64_t thread_bytes;

  static WeightGradPlan plan(const Correlation<S>& p, bool has_planes, int num_threads) {
    WeightGradPlan plan;
    plan.has_planes = has_planes;
    plan.threads = p.threads(num_threads);
    plan.panels = ceil_div(p.depth(), gemm::kPanel<T>);
    const int64_t tasks = plan.threads > 1 ? 4 * plan.threads : 1, there = max_of(1, plan.panels * p.groups);
    const int64_t blocks = max_of(ceil_div(p.rows, kMaxBlockRows), ceil_div(tasks, there));
    plan.block_rows = round_up(max_of(1, ceil_div(p.rows, blocks)), gemm::kTileRows);
    plan.blocks = ceil_div(p.rows, plan.block_rows);
    // from [kChunk][kPanel], the same before it is transposed, dy [block_rows][kChunk], sums [block_rows][kPanel].
    plan.thread_bytes = ((2 * kChunk + 2 + plan.block_rows) * gemm::kPanel<T> + plan.block_rows * kChunk) * sizeof(T);
    return plan;
  }
  int64_t bytes() const { return threads * thread_bytes; }
};

// [columns][kPanel results] to [results][kPanel columns].
template <class T>
PF_INLINE void transpose_panel(const T* from, int64_t columns, int64_t results, T* out) {
  constexpr int lanes = kLanes<T>, panel = gemm::kPanel<T>;
  for (int64_t c = 0; c < columns; c += lanes)
    for (int64_t r = 0; r < results; r += lanes) {
      Vec<T> square[lanes];
      for (int i = 0; i < lanes; i++) square[i] = load(from + (c + i) * panel + r);
      transpose(square);
      for (int i = 0; i < lanes; i++) store(out + (r + i) * panel + c, square[i]);
    }
}

// Asks for what the next results read of rows of channels, some of them at a time: pieces of long rows, which no
// prefetcher follows. The first piece speaks for all.
template <class S>
struct RowsAhead {
  const Correlation<S>& p;
  const S* from;
  const Piece& piece;
  Place place;
  int64_t left;

  void operator()(int64_t count) {
    for (; count > 0 && left > 0; count--, left--) {
      const int64_t d = place.index(p.axes, 0) + piece.d * p.axes[0].tap_step;
      const int64_t h = place.index(p.axes, 1) + piece.h * p.axes[1].tap_step;
      if (is_inside(d, p.axes[0].from) && is_inside(h, p.axes[1].from))
        prefetch_far(from + place.n * p.from_stride.outer + d * p.from_stride.spatial[0] +
                         h * p.from_stride.spatial[1] + place.index(p.axes, 2) * p.from_stride.spatial[2] + piece.begin,
                     piece.end - piece.begin);
      if (++place.j[2] == p.axes[2].count) place.next_row(p);
    }
  }
};

// `dweight_at(column)`: where that column of a row is; columns are ordered by channel, tap in planes, else by tap,
// channel.
template <class S, class At>
void weight_grad_product(const Correlation<S>& p, const Gradient<S>& dy, S* dweight, int64_t row_stride,
                         int64_t group_stride, const At& dweight_at, bool has_planes, void* workspace,
                         int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t panel_width = gemm::kPanel<T>;
  const WeightGradPlan<S> plan = WeightGradPlan<S>::plan(p, has_planes, num_threads);
  const int64_t depth = p.depth(), per_image = p.batch ? p.positions() / p.batch : 0;
  parallel_tasks(p.groups * plan.panels * plan.blocks, plan.threads, [&](int64_t task, int thread) {
    const int64_t block = task % plan.blocks, group = task / plan.blocks / plan.panels;
    const int64_t column = task / plan.blocks % plan.panels * panel_width,
                  columns = min_of(panel_width, depth - column);
    const int64_t row = block * plan.block_rows, row_count = min_of(plan.block_rows, p.rows - row);
    const int vectors = (int)ceil_div(columns, kLanes<T>);
    const S* from = p.from + group * p.channels * p.from_stride.channel;
    const S* gradient = dy.at + (group * p.rows + row) * dy.row;
    T* b = (T*)((char*)workspace + thread * plan.thread_bytes);
    T* columns_of = b + (kChunk + 1) * panel_width;
    T* a = columns_of + (kChunk + 1) * panel_width;
    T* sums = a + plan.block_rows * kChunk;
    clear(sums, 0, row_count * panel_width);
    const Pieces pieces(p, column, column + (has_planes ? 0 : columns));
    for (int64_t n = 0; n < p.batch; n++) {
      for (int64_t first = 0, chunk; first < per_image; first += chunk) {
        chunk = min_of(kChunk, per_image - first);
        const int64_t result = n * per_image + first;
        if (has_planes) {
          for (int64_t r = 0; r < chunk; r += panel_width) {
            const int64_t results = min_of(panel_width, chunk - r);
            gather_columns(p, from, Runs<T>(p, result + r, results), column, column + columns, columns_of);
            transpose_panel(columns_of, columns, results, b + r * panel_width);
          }
        } else {
          gather_rows(p, from, result, chunk, pieces, panel_width, b);
        }
        const int64_t next = result + chunk, next_count = min_of(kChunk, p.positions() - next);
        const int64_t parts = max_of(1, row_count / gemm::kTileRows), share = ceil_div(next_count, parts);
        auto columns_ahead = [&](int64_t r) {
          const int64_t there = min_of(panel_width, max_of(next_count - r, 0));
          return Ahead<S, T>(p, from, Runs<T>(p, next + r, there), column, there ? column + columns : column, parts);
        };
        Ahead<S, T> ahead[2] = {columns_ahead(0), columns_ahead(panel_width)};
        RowsAhead<S> rows_ahead = {p, from, pieces.piece[0], Place::at(p, next), next_count};
        const S* there = gradient + n * dy.image + first * dy.result;
        // The product reads dy as it lies, or from a copy as `T`.
        const bool is_in_place = sizeof(S) == sizeof(T) && (dy.result == 1 || dy.row == 1);
        if (!is_in_place) gemm::pack_a(there, dy.row, dy.result, row_count, chunk, chunk, a);
        for (int64_t i = 0, count; i < row_count; i += count) {
          count = gemm::next_tile_rows(row_count - i);
          T* to = sums + i * panel_width;
          const T* tile = (const T*)there + i * dy.row;
          if (has_planes)
            for (auto& of_panel : ahead) of_panel();
          else
            rows_ahead(share);
          if (dy.result == 1)
            prefetch_rows(there + (i + count) * dy.row, dy.row, min_of(gemm::kTileRows, row_count - i - count), chunk);
          if (!is_in_place)
            gemm::tile_of<T, gemm::Lies::packed>((int)count, vectors)(chunk, a + i * chunk, 0, b, to, false);
          else if (dy.result == 1)
            gemm::tile_of<T, gemm::Lies::by_row>((int)count, vectors)(chunk, tile, dy.row, b, to, false);
          else
            gemm::tile_of<T, gemm::Lies::by_column>((int)count, vectors)(chunk, tile, dy.result, b, to, false);
        }
      }
    }
    S* to = dweight + group * group_stride + row * row_stride;
    int64_t at[panel_width];
    bool is_adjacent = true;
    for (int64_t c = 0; c < columns; c++) {
      at[c] = dweight_at(column + c);
      is_adjacent &= at[c] == at[0] + c;
    }
    // Row by row: one below the other, every element would be on a page of its own.
    for (int64_t i = 0; i < row_count; i++, to += row_stride) {
      const T* sum = sums + i * panel_width;
      if (is_adjacent)
        for (int64_t c = 0; c < columns; c += kLanes<T>) store_n(to + at[0] + c, load(sum + c), columns - c);
      else
        for (int64_t c = 0; c < columns; c++) put(to + at[c], sum[c]);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
