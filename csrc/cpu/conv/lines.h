// A convolution of few channels (an image's colours, the grey of a digit). What the taps of one line of the kernel read
// is one run of a line of the source whose channels are adjacent, and the next result's run begins stride * channels
// further: a product can read such lines as they are, its rows overlapping. So the lines that a block of results reads
// are copied once, channels adjacent, zeros where the padding is, whatever their layout and type, and nothing is
// unfolded. Sums are over taps, then channels, as in rows.h.
#pragma once
#include "rows.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kMaxLinesChannels = 4;
// Channels of the result: with fewer too little of a vector is used. Of six, LeNet's first on digits, Zen 4 takes 0.6
// of the time that depthwise kernels take.
constexpr int64_t kMinLinesRows = 4;
constexpr int64_t kMaxRuns = 64;           // lines of a kernel
constexpr int64_t kLinesBytes = 96 << 10;  // of copied lines: beside the weight in a second-level cache

// Which results a block has: `lines` lines of `places` each, of one image, depth and group.
struct LinesBlock {
  int64_t group, n, depth, line, place;  // of the first
  int64_t lines, places;

  int64_t results() const { return lines * places; }
};

// How results are cut into blocks, of at most `results` each, and how the lines lie that a block reads.
template <class S>
struct Lines {
  typedef Acc<S> T;
  const Correlation<S>& p;
  int64_t places, lines;  // of a block, at most
  int64_t across, down;   // blocks of a depth
  int64_t pitch, height;  // of the copied lines, and how many there are for one tap of the depth
  int64_t run;            // taps of a line times channels

  Lines(const Correlation<S>& p, int64_t results) : p(p), run(p.axes[2].taps * p.channels) {
    const Axis(&axes)[kConvDims] = p.axes;
    const int64_t heights = axes[0].taps * axes[1].taps, fit = kLinesBytes / (heights * (int64_t)sizeof(T));
    places = max_of(min_of(results, (fit / p.channels - axes[2].taps) / axes[2].from_step + 1), gemm::kTileRows);
    across = max_of(1, ceil_div(axes[2].count, places));
    places = max_of(1, ceil_div(axes[2].count, across));
    pitch = ((places - 1) * axes[2].from_step + axes[2].taps) * p.channels;
    // Windows that do not overlap have no line in common.
    const int64_t more = (fit * axes[1].taps / pitch - axes[1].taps) / axes[1].from_step;
    lines = min_of(max_of(min_of(results / places, more + 1), 1), max_of(1, axes[1].count));
    down = max_of(1, ceil_div(axes[1].count, lines));
    lines = max_of(1, ceil_div(axes[1].count, down));
    height = (lines - 1) * axes[1].from_step + axes[1].taps;
  }
  int64_t blocks_of_group() const { return p.batch * p.axes[0].count * down * across; }
  int64_t copied() const { return p.axes[0].taps * height * pitch + kLanes<T>; }

  LinesBlock block(int64_t i) const {
    LinesBlock b;
    b.place = i % across * places;
    b.line = i / across % down * lines;
    b.depth = i / across / down % p.axes[0].count;
    b.n = i / across / down / p.axes[0].count % p.batch;
    b.group = i / blocks_of_group();
    b.lines = min_of(lines, p.axes[1].count - b.line);
    b.places = min_of(places, p.axes[2].count - b.place);
    return b;
  }
  // Where the first tap of a result reads, and where a run of it lies from there.
  int64_t first(int64_t line, int64_t place) const {
    return line * p.axes[1].from_step * pitch + place * p.axes[2].from_step * p.channels;
  }
  int64_t run_at(int64_t i) const { return (i / p.axes[1].taps * height + i % p.axes[1].taps) * pitch; }
  int64_t to(const LinesBlock& b, int64_t line, int64_t place) const {
    Place at = {b.n, {b.depth, b.line + line, b.place + place}};
    return at.to(p);
  }
  void copy_of(const LinesBlock& b, T* out) const {
    const Axis(&axes)[kConvDims] = p.axes;
    const S* image = p.from + b.group * p.channels * p.from_stride.channel + b.n * p.from_stride.outer;
    const int64_t first = b.place * axes[2].from_step + axes[2].tap_first;
    const int64_t width = (b.places - 1) * axes[2].from_step + axes[2].taps;
    for (int64_t t = 0; t < axes[0].taps; t++) {
      const int64_t d = b.depth * axes[0].from_step + axes[0].tap_first + t * axes[0].tap_step;
      for (int64_t i = 0; i < (b.lines - 1) * axes[1].from_step + axes[1].taps; i++) {
        if (i % axes[1].from_step >= axes[1].taps) continue;  // between two windows
        const int64_t h = b.line * axes[1].from_step + axes[1].tap_first + i;
        const bool is_there = is_inside(d, axes[0].from) && is_inside(h, axes[1].from);
        copy_line(image + d * p.from_stride.spatial[0] + h * p.from_stride.spatial[1], first, is_there ? width : 0,
                  width, out + (t * height + i) * pitch);
      }
    }
  }

 private:
  // Places [first, first + width) of a line, of which the first `there` may be inside.
  void copy_line(const S* line, int64_t first, int64_t there, int64_t width, T* out) const {
    const Inside inside(first, 1, there, p.axes[2].from);
    const int64_t apart = p.from_stride.spatial[2], next = p.from_stride.channel, channels = p.channels;
    clear(out, 0, inside.begin * channels);
    const S* from = line + (first + inside.begin) * apart;
    T* to = out + inside.begin * channels;
    const int64_t count = inside.end - inside.begin;
    if (apart == channels && (next == 1 || channels == 1))
      copy(from, 1, count * channels, to);
    else if (apart == 1 && channels == 3)
      interleave_three(from, next, count, to);
    else
      for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < count; i++) to[i * channels + c] = get(from + c * next + i * apart);
    clear(out, inside.end * channels, width * channels);
  }

  // Lane i of part kPart of three interleaved vectors: from the first two of them, and then from the third.
  template <int kPart>
  struct FromTwo {
    static constexpr int lane(int i) {
      const int at = kPart * kLanes<T> + i;
      return at % 3 == 1 ? kLanes<T> + at / 3 : at / 3;
    }
  };
  template <int kPart>
  struct FromThird {
    static constexpr int lane(int i) {
      const int at = kPart * kLanes<T> + i;
      return at % 3 == 2 ? kLanes<T> + at / 3 : i;
    }
  };
  template <int kPart>
  PF_MEMBER static void store_part(Vec<T> a, Vec<T> b, Vec<T> c, T* to) {
    store(to + kPart * kLanes<T>, shuffle<FromThird<kPart>>(shuffle<FromTwo<kPart>>(a, b), c));
  }
  PF_MEMBER static void interleave_three(const S* from, int64_t apart, int64_t count, T* to) {
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>, to += 3 * kLanes<T>) {
      const Vec<T> a = load(from + i), b = load(from + apart + i), c = load(from + 2 * apart + i);
      store_part<0>(a, b, c, to);
      store_part<1>(a, b, c, to);
      store_part<2>(a, b, c, to);
    }
    for (; i < count; i++, to += 3)
      for (int c = 0; c < 3; c++) to[c] = get(from + c * apart + i);
  }
};

// Has it few enough channels, and do the taps of a line read neighbours, without wide gaps from window to window?
template <class S>
PF_INLINE bool has_lines(const Correlation<S>& p) {
  const Axis &height = p.axes[1], &width = p.axes[2];
  const int64_t runs = p.axes[0].taps * height.taps, run = width.taps * p.channels;
  if (p.channels > kMaxLinesChannels || p.rows < kMinLinesRows) return false;
  if (p.groups > 1 && p.channels == 1) return false;  // depthwise
  if (height.tap_step != 1 || width.tap_step != 1 || width.from_step > 2 * width.taps) return false;
  return run >= 1 && run <= kChunk && runs >= 1 && runs <= kMaxRuns;
}

// Runs of a chunk of the sum, all chunks nearly as long.
PF_INLINE int64_t chunk_runs(int64_t runs, int64_t run) {
  return ceil_div(runs, ceil_div(runs, max_of(1, kChunk / run)));
}

// Where a tile's results go, of rows whose channels are adjacent: those of [channel, channel + columns) to to[r] +
// channel.
template <class T>
struct TileEnd {
  const PlainFinish<T>& finish;
  const int64_t* to;
  int64_t channel, columns;
};

// One tile, some runs: row r reads `run` elements from at[r] + runs[i] on. Its sums are added to `sums` unless they are
// `fresh`, and stay there where there is no `end`.
template <class T, int kRows, int kVectors>
__attribute__((noinline)) void runs_tile(const T* const* at, const int64_t* runs, int64_t count, int64_t run,
                                         const T* b, T* sums, bool fresh, const TileEnd<T>* end) {
  Vec<T> acc[kRows][kVectors];
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) acc[r][v] = Vec<T>{};
  for (int64_t i = 0; i < count; i++, b += run * gemm::kPanel<T>) {
    const T* a[kRows];
    PF_UNROLL
    for (int r = 0; r < kRows; r++) a[r] = at[r] + runs[i];
#pragma GCC unroll 4
    for (int64_t k = 0; k < run; k++)
      multiply_step(
          acc, k, [&](int r, int64_t k) __attribute__((always_inline)) { return broadcast(a[r] + k); },
          ColumnFactors<T>{b, gemm::kPanel<T>});
  }
  if (!fresh) {
    PF_UNROLL
    for (int r = 0; r < kRows; r++) PF_UNROLL
    for (int v = 0; v < kVectors; v++) acc[r][v] += load(sums + r * gemm::kPanel<T> + v * kLanes<T>);
  }
  if (!end) {
    PF_UNROLL
    for (int r = 0; r < kRows; r++) PF_UNROLL
    for (int v = 0; v < kVectors; v++) store(sums + r * gemm::kPanel<T> + v * kLanes<T>, acc[r][v]);
    return;
  }
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) {
    const int64_t channel = end->channel + v * kLanes<T>, left = end->columns - v * kLanes<T>;
    const Affine<Vec<T>> affine = end->finish.of_channels(channel, left);
    T* to = end->finish.finish.to + channel;
    auto last = [&](int r) __attribute__((always_inline)) { return end->finish.bounded(affine(acc[r][v])); };
    if (v + 1 < kVectors || left >= kLanes<T>) {
      PF_UNROLL
      for (int r = 0; r < kRows; r++) store(to + end->to[r], last(r));
    } else {
      PF_UNROLL
      for (int r = 0; r < kRows; r++) store_n(to + end->to[r], last(r), left);
    }
  }
}

template <class T>
using RunsTile = void (*)(const T* const*, const int64_t*, int64_t, int64_t, const T*, T*, bool, const TileEnd<T>*);

template <class T, int kRows = gemm::kTileRows, int kVectors = gemm::kTileVectors>
RunsTile<T> runs_tile_of(int rows, int vectors) {
  if constexpr (kRows > 1)
    if (rows < kRows) return runs_tile_of<T, kRows - 1, kVectors>(rows, vectors);
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return runs_tile_of<T, kRows, kVectors - 1>(rows, vectors);
  return runs_tile<T, kRows, kVectors>;
}

// Of a block: its sums, 24 KB of each panel, stay in L1. Zen 4, one thread: 3x3 of 3 to 64 channels 5% slower with 192.
constexpr int64_t kLinesResults = 96;

template <class S>
struct LinesPlan {
  typedef Acc<S> T;
  static constexpr int64_t kPanel = gemm::kPanel<T>;
  Lines<S> lines;
  int threads;
  int64_t panels, results, blocks, each;  // blocks of a task
  int64_t packed_bytes;

  LinesPlan(const Correlation<S>& p, int num_threads)
      : lines(p, kLinesResults),
        threads(p.threads(num_threads)),
        panels(ceil_div(p.rows, kPanel)),
        results(round_up(lines.lines * lines.places, kLanes<T>)),
        blocks(p.groups * lines.blocks_of_group()),
        each(min_of(max_of(blocks / (8 * threads), 1), 16)),
        packed_bytes(p.groups * panels * p.depth() * kPanel * (int64_t)sizeof(T)) {}

  // What a thread works in.
  struct Work {
    T *copied, *sums, *planes;
    const T** at;
    int64_t* to;
    int64_t bytes;
  };
  Work work(void* memory) const {
    Carver carver = {(char*)memory, 0};
    Work w;
    w.copied = carver.take<T>(lines.copied());
    w.sums = carver.take<T>((results + kLanes<T>)*kPanel);
    w.planes = carver.take<T>((results + kLanes<T>)*kPanel);
    w.at = carver.take<const T*>(results);
    w.to = carver.take<int64_t>(results);
    w.bytes = carver.used;
    return w;
  }
  int64_t bytes() const { return threads * work(nullptr).bytes; }
};

// sums[results][kPanel] of `channels` channels to where they go as planes, whose lines are written one by one.
template <class S, class T>
void write_planes(const FinishRows<S>& finish, const T* sums, const int64_t* to, int64_t results, int64_t step,
                  int64_t channel, int64_t channels, int64_t channel_stride, T* planes) {
  constexpr int lanes = kLanes<T>;
  const int64_t pitch = round_up(results, lanes);
  const bool is_direct = finish.is_plain && step == 1;
  for (int64_t r = 0, count; r < results; r += count) {
    for (count = 1; r + count < results && to[r + count] - to[r + count - 1] == step; count++) continue;
    for (int64_t c = 0; c < channels; c += lanes) {
      const int64_t there = min_of(lanes, channels - c);
      T scale[lanes] __attribute__((aligned(64))), bias[lanes] __attribute__((aligned(64)));
      const Affine<Vec<T>> affine = finish.plain.of_channels(channel + c, there);
      store(scale, affine.scale);
      store(bias, affine.bias);
      const int64_t line = to[r] + (channel + c) * channel_stride;
      for (int64_t i = 0; i < count; i += lanes) {
        const int64_t left = count - i;
        Vec<T> square[lanes];
        for (int n = 0; n < lanes; n++) square[n] = load(sums + (r + i + n) * gemm::kPanel<T> + c);
        if (is_direct && left > lanes)
          for (int64_t n = 0; n < there; n++) finish.prefetch(line + n * channel_stride + i + lanes, 0, 1, lanes);
        transpose(square);
        if (is_direct)
          for (int64_t n = 0; n < there; n++)
            finish.plain(line + n * channel_stride + i, fma(square[n], splat<Vec<T>>(scale[n]), splat<Vec<T>>(bias[n])),
                         left);
        else
          for (int n = 0; n < lanes; n++) store(planes + (c + n) * pitch + i, square[n]);
      }
    }
    if (!is_direct)
      finish(
          {planes, channels, pitch, count, to[r] + channel * channel_stride, channel_stride, step, channel, false, 1});
  }
}

// by_rows: channels of the result are adjacent.
template <class S>
void lines_product(const Correlation<S>& p, bool by_rows, PackedWeight packed, void* workspace,
                   const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t panel_width = gemm::kPanel<T>;
  const LinesPlan<S> plan(p, num_threads);
  const Lines<S>& lines = plan.lines;
  T* panels = (T*)packed.memory;
  if (!packed.is_done) pack_panels(p, plan.panels, panels, plan.threads);
  const int64_t depth = p.depth(), runs = p.axes[0].taps * p.axes[1].taps, chunk = chunk_runs(runs, lines.run);
  const int64_t to_step = p.axes[2].to_step * p.to_stride.spatial[2], thread_bytes = plan.work(nullptr).bytes;
  const int64_t from_step = lines.first(0, 1);
  const bool is_direct = by_rows && finish.is_plain;
  int64_t run_at[kMaxRuns];
  for (int64_t i = 0; i < runs; i++) run_at[i] = lines.run_at(i);
  auto multiply = [&](const LinesBlock& block, const typename LinesPlan<S>::Work& work) {
    lines.copy_of(block, work.copied);
    for (int64_t line = 0, i = 0; line < block.lines; line++) {
      const T* at = work.copied + lines.first(line, 0);
      int64_t to = lines.to(block, line, 0);
      for (int64_t place = 0; place < block.places; place++, i++, at += from_step, to += to_step) {
        work.at[i] = at;
        work.to[i] = to;
      }
    }
    const int64_t results = block.results();
    for (int64_t panel = 0; panel < plan.panels; panel++) {
      const int64_t column = panel * panel_width, columns = min_of(panel_width, p.rows - column);
      const int64_t channel = block.group * p.rows + column;
      const int vectors = (int)ceil_div(columns, kLanes<T>);
      const T* b = panels + (block.group * plan.panels + panel) * depth * panel_width;
      for (int64_t first = 0, count; first < runs; first += count, b += count * lines.run * panel_width) {
        count = min_of(chunk, runs - first);
        for (int64_t i = 0, rows; i < results; i += rows) {
          rows = gemm::next_tile_rows(results - i);
          T* tile = work.sums + i * panel_width;
          const bool is_last = first + count == runs;
          if (by_rows && is_last)
            for (int64_t r = 0; r < rows; r++) finish.prefetch(work.to[i + r] + channel, 0, 1, columns);
          auto multiply_tile = [&](const TileEnd<T>* end) {
            runs_tile_of<T>((int)rows, vectors)(work.at + i, run_at + first, count, lines.run, b, tile, first == 0,
                                                end);
          };
          if constexpr (FinishRows<S>::kIsSummedType) {
            const TileEnd<T> end = {finish.plain, work.to + i, channel, columns};
            multiply_tile(is_direct && is_last ? &end : nullptr);
          } else {
            multiply_tile(nullptr);
          }
        }
      }
      if (by_rows && !is_direct) finish_rows(finish, work.sums, work.to, results, columns, channel);
      if (!by_rows)
        write_planes(finish, work.sums, work.to, results, to_step, channel, columns, p.to_stride.channel, work.planes);
    }
  };
  parallel_tasks(ceil_div(plan.blocks, plan.each), plan.threads, [&](int64_t task, int thread) {
    const typename LinesPlan<S>::Work work = plan.work((char*)workspace + thread * thread_bytes);
    for (int64_t i = task * plan.each; i < min_of((task + 1) * plan.each, plan.blocks); i++)
      multiply(lines.block(i), work);
  });
}

}  // namespace

}  // namespace PF_ISA::conv
