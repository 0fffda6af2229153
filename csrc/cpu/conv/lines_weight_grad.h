// The gradient of the weight of a convolution of few channels, from lines as in lines.h. dweight[step][row] = sum over
// results of lines[result][step] dy[result][row]: elements of the lines are broadcast from where they lie, and dy's
// channels are vectors, which are read in place where they are adjacent and fill them.
#pragma once
#include "lines.h"

namespace PF_ISA::conv {

namespace {

// Longer ones of adjacent channels are as quickly unfolded: ViT's patches, 16x16 of 3 channels, on Zen 4 0.9 of the
// time.
constexpr int64_t kMaxGradRun = 32;
constexpr int64_t kGradParts = 16;          // tasks, if there is as much work: sums of each, then of all
constexpr int64_t kGradPartMacs = 1 << 21;  // of one, at least: adding its sums to the others' costs a hundredth

// One tile: row r's factor of result (line, place) is at[r][line * line_step + place * place_step], that of the columns
// at b[line * b_line_step + place * b_place_step]. Added to `sums`.
template <class T, int kRows, int kVectors>
__attribute__((noinline)) void results_tile(const T* const* at, int64_t line_step, int64_t place_step, const T* b,
                                            int64_t b_line_step, int64_t b_place_step, int64_t lines, int64_t places,
                                            T* sums) {
  Vec<T> acc[kRows][kVectors];
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) acc[r][v] = Vec<T>{};
  for (int64_t line = 0; line < lines; line++) {
    const T* a[kRows];
    PF_UNROLL
    for (int r = 0; r < kRows; r++) a[r] = at[r] + line * line_step;
#pragma GCC unroll 4
    for (int64_t i = 0; i < places; i++)
      multiply_step(
          acc, i, [&](int r, int64_t i) __attribute__((always_inline)) { return broadcast(a[r] + i * place_step); },
          ColumnFactors<T>{b + line * b_line_step, b_place_step});
  }
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) {
    T* to = sums + r * gemm::kPanel<T> + v * kLanes<T>;
    store(to, load(to) + acc[r][v]);
  }
}

template <class T>
using ResultsTile = void (*)(const T* const*, int64_t, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, T*);

template <class T, int kRows = gemm::kTileRows, int kVectors = gemm::kTileVectors>
ResultsTile<T> results_tile_of(int rows, int vectors) {
  if constexpr (kRows > 1)
    if (rows < kRows) return results_tile_of<T, kRows - 1, kVectors>(rows, vectors);
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return results_tile_of<T, kRows, kVectors - 1>(rows, vectors);
  return results_tile<T, kRows, kVectors>;
}

template <class S>
struct LinesGradPlan {
  typedef Acc<S> T;
  static constexpr int64_t kPanel = gemm::kPanel<T>;
  Lines<S> lines;
  int threads;
  int64_t panels, blocks, parts, depth;  // blocks of a group, and into how many parts they fall

  LinesGradPlan(const Correlation<S>& p, int num_threads)
      : lines(p, kChunk),
        threads(p.threads(num_threads)),
        panels(ceil_div(p.rows, kPanel)),
        blocks(lines.blocks_of_group()),
        depth(p.depth()) {
    const int64_t there = max_of(1, p.groups * panels), macs = p.positions() * depth * min_of(p.rows, kPanel);
    parts = max_of(1, min_of(min_of(ceil_div(kGradParts, there), blocks), macs / kGradPartMacs));
  }

  struct Work {
    T *copied, *dy;
    const T** at;
    int64_t bytes;
  };
  Work work(void* memory) const {
    Carver carver = {(char*)memory, 0};
    Work w;
    w.copied = carver.take<T>(lines.copied());
    w.dy = carver.take<T>(round_up(kChunk, kLanes<T>) * kPanel);
    w.at = carver.take<const T*>(depth);
    w.bytes = carver.used;
    return w;
  }
  int64_t sums_bytes() const { return lines.p.groups * panels * parts * depth * kPanel * (int64_t)sizeof(T); }
  int64_t bytes() const { return round_up(sums_bytes(), 64) + threads * work(nullptr).bytes; }
};

// dy of one line of results, `columns` channels of each, to out[place][kPanel].
template <class S, class T>
void copy_gradient(const S* dy, int64_t channel_stride, int64_t place_stride, int64_t places, int64_t columns, T* out) {
  constexpr int lanes = kLanes<T>;
  constexpr int64_t panel = gemm::kPanel<T>;
  if (channel_stride == 1) {
    for (int64_t i = 0; i < places; i++)
      for (int64_t c = 0; c < columns; c += lanes)
        store(out + i * panel + c, load_n(dy + i * place_stride + c, columns - c));
  } else if (place_stride == 1) {
    for (int64_t c = 0; c < columns; c += lanes)
      for (int64_t i = 0; i < places; i += lanes) {
        Vec<T> square[lanes];
        for (int n = 0; n < lanes; n++)
          square[n] = c + n < columns ? load_n(dy + (c + n) * channel_stride + i, places - i) : Vec<T>{};
        transpose(square);
        for (int n = 0; n < min_of(lanes, places - i); n++) store(out + (i + n) * panel + c, square[n]);
      }
  } else {
    for (int64_t i = 0; i < places; i++)
      for (int64_t c = 0; c < columns; c++) out[i * panel + c] = get(dy + i * place_stride + c * channel_stride);
  }
}

// `p` is the forward's sum, of which dy is in the place of the result; `dweight_at(step)`: where that step of a row is.
template <class S, class At>
void lines_weight_grad(const Correlation<S>& p, const S* dy, S* dweight, const At& dweight_at, void* workspace,
                       int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t panel_width = gemm::kPanel<T>;
  const LinesGradPlan<S> plan(p, num_threads);
  const Lines<S>& lines = plan.lines;
  const int64_t depth = plan.depth, panels = plan.panels, parts = plan.parts;
  const int64_t line_step = lines.first(1, 0), place_step = lines.first(0, 1);
  const int64_t dy_place = p.to_stride.spatial[2], dy_channel = p.to_stride.channel;
  const int64_t sums_of_part = depth * panel_width;
  T* all_sums = (T*)workspace;
  char* works = (char*)workspace + round_up(plan.sums_bytes(), 64);
  const int64_t thread_bytes = plan.work(nullptr).bytes;
  parallel_tasks(p.groups * panels * parts, plan.threads, [&](int64_t task, int thread) {
    const int64_t part = task % parts, panel = task / parts % panels, group = task / parts / panels;
    const typename LinesGradPlan<S>::Work work = plan.work(works + thread * thread_bytes);
    const int64_t column = panel * panel_width, columns = min_of(panel_width, p.rows - column);
    const int vectors = (int)ceil_div(columns, kLanes<T>);
    const bool in_place = sizeof(S) == sizeof(T) && dy_channel == 1 && columns % kLanes<T> == 0;
    T* sums = all_sums + task * sums_of_part;
    clear(sums, 0, sums_of_part);
    for (int64_t k = 0; k < depth; k++) work.at[k] = work.copied + lines.run_at(k / lines.run) + k % lines.run;
    for (int64_t i = plan.blocks * part / parts; i < plan.blocks * (part + 1) / parts; i++) {
      const LinesBlock block = lines.block(group * plan.blocks + i);
      lines.copy_of(block, work.copied);
      const S* gradient = dy + lines.to(block, 0, 0) + (group * p.rows + column) * dy_channel;
      const int64_t dy_line = p.to_stride.spatial[1];
      if (!in_place)
        for (int64_t line = 0; line < block.lines; line++)
          copy_gradient(gradient + line * dy_line, dy_channel, dy_place, block.places, columns,
                        work.dy + line * block.places * panel_width);
      const T* b = in_place ? (const T*)gradient : work.dy;
      const int64_t b_line = in_place ? dy_line : block.places * panel_width,
                    b_place = in_place ? dy_place : panel_width;
      for (int64_t k = 0, rows; k < depth; k += rows) {
        rows = gemm::next_tile_rows(depth - k);
        results_tile_of<T>((int)rows, vectors)(work.at + k, line_step, place_step, b, b_line, b_place, block.lines,
                                               block.places, sums + k * panel_width);
      }
    }
  });
  // The sums of all parts, in their order.
  parallel_tasks(p.groups * panels, plan.threads, [&](int64_t task, int) {
    T* sums = all_sums + task * parts * sums_of_part;
    for (int64_t part = 1; part < parts; part++)
      for (int64_t i = 0; i < sums_of_part; i += kLanes<T>)
        store(sums + i, load(sums + i) + load(sums + part * sums_of_part + i));
    const int64_t group = task / panels, column = task % panels * panel_width;
    for (int64_t k = 0; k < depth; k++)
      for (int64_t c = 0; c < min_of(panel_width, p.rows - column); c++)
        put(dweight + group * p.weight_group + (column + c) * p.weight_row + dweight_at(k), sums[k * panel_width + c]);
  });
}

}  // namespace

}  // namespace PF_ISA::conv
