// A convolution of images whose rows lie along memory (NCHW): results are columns, a panel of them at a time, and the
// channels of the result are rows. The weight is read as it is, [row][channel][tap]; what the taps of a panel read is
// gathered for one chunk of the depth, in L1, so nothing as large as an unfolded image is ever stored.
#pragma once
#include "finish.h"
#include "problem.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kMaxBlockRows = 80 * gemm::kTileRows;
constexpr int64_t kMaxSpan = 8;

// Neighbouring columns of a panel whose taps read neighbours of one row.
struct Run {
  int64_t column, count;
  int64_t index[kConvDims];  // where tap 0 of the first reads
  int64_t from, to;          // element of index 0 of all dimensions; of the first result
  int64_t sample, place;     // of the first result
};

template <class T>
struct Runs {
  Run run[gemm::kPanel<T>];
  int64_t count = 0;

  template <class S>
  Runs(const Correlation<S>& p, int64_t first, int64_t columns) {
    Place place = Place::at(p, first);
    for (int64_t column = 0; column < columns;) {
      Run& r = run[count++];
      r.column = column;
      r.count = min_of(columns - column, p.axes[2].count - place.j[2]);
      for (int i = 0; i < kConvDims; i++) r.index[i] = place.index(p.axes, i);
      r.from = place.n * p.from_stride.outer;
      r.sample = place.n;
      r.place = place.number(p);
      r.to = place.to(p);
      column += r.count;
      place.next_row(p);
    }
  }
  // Of runs that follow one another in the result, one: for writing only.
  void join(int64_t step) {
    int64_t last = 0;
    for (int64_t i = 1; i < count; i++) {
      if (run[i].to == run[last].to + run[last].count * step && run[i].sample == run[last].sample)
        run[last].count += run[i].count;
      else
        run[++last] = run[i];
    }
    count = count ? last + 1 : 0;
  }
};

// Steps of a sum over channels, then taps.
struct Step {
  int64_t channel, tap[kConvDims];

  template <class S>
  static Step at(const Correlation<S>& p, int64_t k) {
    Step step;
    step.channel = split(k, step.tap, p.axes, &Axis::taps);
    return step;
  }
  template <class S>
  void next(const Correlation<S>& p) {
    for (int i = kConvDims - 1; i >= 0; i--) {
      if (++tap[i] < p.axes[i].taps) return;
      tap[i] = 0;
    }
    channel++;
  }
};

// A vector of a run's columns, for one tap, of which what lies outside the source is zero.
struct Segment {
  int64_t from;    // of its first lane, in the channel's plane
  int32_t column;  // of the panel
  uint32_t there;  // a bit for each element from the first one on; of sources that are far apart, for each lane
};

template <class S, class T>
struct Segments {
  Segment segment[gemm::kPanel<T>];
  int64_t count = 0, apart;  // elements of the source from lane to lane

  Segments(const Correlation<S>& p, const Runs<T>& runs, const int64_t (&tap)[kConvDims])
      : apart(p.axes[2].from_step * p.from_stride.spatial[2]) {
    const Axis(&axes)[kConvDims] = p.axes;
    const ConvStrides& stride = p.from_stride;
    for (int64_t i = 0; i < runs.count; i++) {
      const Run& run = runs.run[i];
      const int64_t d = run.index[0] + tap[0] * axes[0].tap_step, h = run.index[1] + tap[1] * axes[1].tap_step;
      const int64_t w = run.index[2] + tap[2] * axes[2].tap_step;
      const bool is_there = is_inside(d, axes[0].from) && is_inside(h, axes[1].from);
      const Inside inside(w, axes[2].from_step, is_there ? run.count : 0, axes[2].from);
      const int64_t from = run.from + d * stride.spatial[0] + h * stride.spatial[1] + w * stride.spatial[2];
      for (int64_t c = 0; c < run.count; c += kLanes<T>) {
        const int64_t begin = min_of(max_of(inside.begin - c, 0), kLanes<T>), end = min_of(inside.end - c, kLanes<T>);
        const int64_t scale = apart == 2 ? 2 : 1;
        const uint64_t one = 1, bits = begin < end ? (one << (scale * (end - 1) + 1)) - (one << scale * begin) : 0;
        segment[count++] = {bits ? from + c * apart : 0, (int32_t)(run.column + c), (uint32_t)bits};
      }
    }
  }
  // One row of the panel. Vectors overlap: the next one overwrites what is beyond a run.
  PF_MEMBER void copy(const S* plane, T* out) const {
    constexpr int lanes = kLanes<T>;
    if (apart == 1)
      copy(plane, out,
           [](const S* at, uint32_t there) __attribute__((always_inline)) { return load_masked(at, there); });
    else if (apart == 2)
      copy(plane, out, [](const S* at, uint32_t there) __attribute__((always_inline)) {
        const Vec<T> low = load_masked(at, there & ((1u << lanes) - 1)), high = load_masked(at + lanes, there >> lanes);
        return shuffle<EvenLanes>(low, high);
      });
    else
      copy(plane, out, [&](const S* at, uint32_t there) __attribute__((always_inline)) {
        T lane[lanes] __attribute__((aligned(64)));
        for (int i = 0; i < lanes; i++) lane[i] = there >> i & 1 ? get(at + i * apart) : T(0);
        return load(lane);
      });
  }

 private:
  template <class Load>
  PF_MEMBER void copy(const S* plane, T* out, const Load& load_there) const {
    for (int64_t i = 0; i < count; i++) {
      const Segment& s = segment[i];
      const Vec<T> x = load_there(plane + s.from, s.there);
      if (s.column + kLanes<T> <= gemm::kPanel<T>)
        store(out + s.column, x);
      else
        store_n(out + s.column, x, gemm::kPanel<T> - s.column);
    }
  }
};

// Steps [begin, end) of the columns, one after the other.
template <class S, class T>
void gather_each(const Correlation<S>& p, const S* from, const Runs<T>& runs, int64_t begin, int64_t end, T* out) {
  const Axis(&axes)[kConvDims] = p.axes;
  const ConvStrides& stride = p.from_stride;
  const int64_t apart = axes[2].from_step * stride.spatial[2];
  Step step = Step::at(p, begin);
  for (int64_t k = begin; k < end; k++, step.next(p), out += gemm::kPanel<T>) {
    const S* plane = from + step.channel * stride.channel;
    for (int64_t i = 0; i < runs.count; i++) {
      const Run& run = runs.run[i];
      T* to = out + run.column;
      const int64_t d = run.index[0] + step.tap[0] * axes[0].tap_step;
      const int64_t h = run.index[1] + step.tap[1] * axes[1].tap_step;
      if (!is_inside(d, axes[0].from) || !is_inside(h, axes[1].from)) {
        clear(to, 0, run.count);
        continue;
      }
      const int64_t w = run.index[2] + step.tap[2] * axes[2].tap_step;
      const Inside inside(w, axes[2].from_step, run.count, axes[2].from);
      const S* row = plane + run.from + d * stride.spatial[0] + h * stride.spatial[1];
      clear(to, 0, inside.begin);
      copy(row + (w + inside.begin * axes[2].from_step) * stride.spatial[2], apart, inside.end - inside.begin,
           to + inside.begin);
      clear(to, inside.end, run.count);
    }
  }
}

// What the columns of a panel are scaled by of one channel; a vector more may be written.
template <class S, class T>
PF_INLINE void style_columns(const Correlation<S>& p, const Runs<T>& runs, int64_t group, int64_t channel, T* out) {
  for (int64_t i = 0; i < runs.count; i++) {
    const Run& run = runs.run[i];
    const Vec<T> style = splat<Vec<T>>(get(p.style_of(run.sample, group) + channel));
    for (int64_t c = 0; c < run.count; c += kLanes<T>) store(out + run.column + c, style);
  }
}
// Steps [begin, end) of gathered columns, scaled.
template <class S, class T>
void scale_columns(const Correlation<S>& p, const Runs<T>& runs, int64_t group, int64_t begin, int64_t end, T* b) {
  constexpr int64_t panel = gemm::kPanel<T>;
  T style[panel + kLanes<T>] __attribute__((aligned(64)));
  const int64_t taps = p.taps();
  for (int64_t k = begin; k < end; k++, b += panel) {
    if (k == begin || k % taps == 0) style_columns(p, runs, group, k / taps, style);
    PF_UNROLL
    for (int64_t c = 0; c < panel; c += kLanes<T>) store(b + c, load(b + c) * load(style + c));
  }
}

constexpr int64_t kManyChannels = 4;  // from how many on the segments of a tap, found once, save more than they cost

// Steps [begin, end) of the columns, to out[step][kPanel]; a vector more may be written after the last.
template <class S, class T>
void gather_columns(const Correlation<S>& p, const S* from, const Runs<T>& runs, int64_t begin, int64_t end, T* out) {
  const int64_t taps = p.taps();
  if (begin == end) return;
  if (end - begin < kManyChannels * taps) return gather_each(p, from, runs, begin, end, out);
  Step step = Step::at(p, begin);
  for (int64_t k = begin; k < begin + taps; k++, step.next(p)) {
    const Segments<S, T> segments(p, runs, step.tap);
    const S* plane = from + step.channel * p.from_stride.channel;
    for (int64_t row = k; row < end; row += taps, plane += p.from_stride.channel)
      segments.copy(plane, out + (row - begin) * gemm::kPanel<T>);
  }
}

// Asks for what a gather will read, some channels of it at a time: short pieces of far places, which no prefetcher
// follows. One tap speaks for all, which are its neighbours.
template <class S, class T>
struct Ahead {
  Segments<S, T> segments;
  const S* plane;
  int64_t channel_stride, left, each;  // channels

  // Of steps [begin, end), in `parts` parts.
  Ahead(const Correlation<S>& p, const S* from, const Runs<T>& runs, int64_t begin, int64_t end, int64_t parts)
      : segments(p, runs, {p.axes[0].taps / 2, p.axes[1].taps / 2, p.axes[2].taps / 2}),
        channel_stride(p.from_stride.channel) {
    const int64_t taps = max_of(1, p.taps()), first = begin / taps;
    plane = from + first * channel_stride;
    left = ceil_div(end, taps) - first;
    each = ceil_div(left, max_of(1, parts));
  }
  void operator()() {
    for (int64_t n = min_of(each, left); n > 0; n--, left--, plane += channel_stride)
      for (int64_t i = 0; i < segments.count; i++) {
        const S* at = plane + segments.segment[i].from;
        __builtin_prefetch(at, 0, 2);
        if (segments.apart > 1) __builtin_prefetch(at + kLine<S>, 0, 2);
      }
  }
};

// How the product is cut, and what it works in.
template <class S>
struct ColumnsPlan {
  typedef Acc<S> T;
  bool is_in_place[2];  // the weight of each phase
  int threads;
  int64_t panels, span, block_rows, blocks;  // span: panels of a task
  int64_t phase_bytes[2], packed_bytes, thread_bytes;

  static bool reads_weight_in_place(const Correlation<S>& p) {
    int64_t natural = 1;
    bool is_natural = sizeof(S) == sizeof(T);
    for (int i = kConvDims - 1; i >= 0; i--) {
      const Axis& a = p.axes[i];
      if (a.taps > 1) is_natural &= p.weight_tap[i] * a.weight_step == natural;
      is_natural &= a.weight_first == 0;
      natural *= a.taps;
    }
    return is_natural && (p.channels == 1 || p.weight_channel == natural);
  }
  static ColumnsPlan plan(const Correlation<S>* phases, int64_t count, int num_threads) {
    const Correlation<S>& p = phases[0];
    ColumnsPlan plan;
    plan.threads = p.threads(num_threads);
    plan.panels = ceil_div(p.positions(), gemm::kPanel<T>);
    const int64_t tasks = 4 * plan.threads, there = max_of(1, plan.panels * p.groups);
    plan.blocks =
        max_of(ceil_div(p.rows, kMaxBlockRows), plan.threads > 1 && there < tasks ? ceil_div(tasks, there) : 1);
    plan.block_rows = max_of(round_up(ceil_div(p.rows, plan.blocks), gemm::kTileRows), gemm::kTileRows);
    plan.blocks = ceil_div(p.rows, plan.block_rows);
    plan.span = min_of(max_of(there * plan.blocks / (4 * tasks), 1), kMaxSpan);
    plan.packed_bytes = 0;
    for (int64_t i = 0; i < count; i++) {
      plan.is_in_place[i] = reads_weight_in_place(phases[i]);
      plan.phase_bytes[i] = plan.packed_bytes;
      if (!plan.is_in_place[i]) plan.packed_bytes += round_up(p.groups * p.rows * phases[i].depth() * sizeof(T), 64);
    }
    // Columns of a chunk, sums of each phase, a tile of two in turn.
    const int64_t in_turn = count > 1 ? 2 * gemm::kTileRows : 0;
    plan.thread_bytes = (kChunk + 1 + count * plan.block_rows + in_turn + 1) * gemm::kPanel<T> * sizeof(T);
    return plan;
  }
  int64_t bytes() const { return threads * thread_bytes; }
};

// The weight as [group][row][channel][tap]. Channels are the outer loop of a few rows: of the input's gradient those
// rows are adjacent in the weight.
template <int kTaps, class S, class T>
void pack_rows(const Correlation<S>& p, T* out, int threads) {
  constexpr int64_t few = 8, most = 64;  // rows whose ends may all fall into one cache set; taps at a time
  // Channels of a weight are often a power of two apart: of eight that are asked for the first are gone when they are
  // read. Zen 4, one thread, 512 to 256 channels of 4x4: 10 to 12 ms with eight, 2 with four.
  constexpr int64_t kAhead = 4;
  const Axis(&axes)[kConvDims] = p.axes;
  const int64_t depth = p.depth(), taps = p.taps(), blocks = ceil_div(p.rows, few);
  int64_t step[kConvDims];
  for (int i = 0; i < kConvDims; i++) step[i] = axes[i].weight_step * p.weight_tap[i];
  parallel_ranges(p.groups * blocks, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t t = 0; t < taps; t += most) {
      const int64_t count = kTaps ? kTaps : min_of(most, taps - t);
      int64_t offset[most];
      for (int64_t i = 0; i < count; i++) {
        const int64_t line = (t + i) / axes[2].taps;
        offset[i] = line / axes[1].taps * step[0] + line % axes[1].taps * step[1] + (t + i) % axes[2].taps * step[2];
      }
      for (int64_t i = first; i < last; i++) {
        const int64_t group = i / blocks, begin = i % blocks * few, end = min_of(p.rows, begin + few);
        const S* from = p.weight + group * p.weight_group + p.weight_at(0, 0, 0);
        for (int64_t c = 0; c < p.channels; c++) {
          const S* ahead = from + begin * p.weight_row + (c + kAhead) * p.weight_channel;
          if (p.weight_row <= kLine<S>) prefetch_rows(ahead, 0, 1, (end - begin) * p.weight_row);
          for (int64_t row = begin; row < end; row++) {
            const S* at = from + row * p.weight_row + c * p.weight_channel;
            T* to = out + (group * p.rows + row) * depth + c * taps + t;
            __builtin_prefetch(to + kAhead * taps, 1);
            for (int64_t n = 0; n < count; n++) to[n] = get(at + offset[n]);
          }
        }
      }
    }
  });
}
// The same of one tap, where rows are adjacent in the weight.
template <class S, class T>
void transpose_rows(const Correlation<S>& p, T* out, int threads) {
  constexpr int lanes = kLanes<T>;
  const int64_t blocks = ceil_div(p.rows, lanes);
  parallel_ranges(p.groups * blocks, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t group = i / blocks, row = i % blocks * lanes, rows = min_of(lanes, p.rows - row);
      const S* from = p.weight + group * p.weight_group + row * p.weight_row + p.weight_at(0, 0, 0);
      T* to = out + (group * p.rows + row) * p.channels;
      for (int64_t c = 0; c < p.channels; c += lanes) {
        const int64_t channels = min_of(lanes, p.channels - c);
        Vec<T> square[lanes];
        for (int64_t n = 0; n < lanes; n++) {
          __builtin_prefetch(from + (c + lanes + n) * p.weight_channel);
          square[n] = n < channels ? load_n(from + (c + n) * p.weight_channel, rows) : Vec<T>{};
        }
        transpose(square);
        for (int64_t n = 0; n < rows; n++) store_n(to + n * p.channels + c, square[n], channels);
      }
    }
  });
}

template <class S, class T>
void pack_rows(const Correlation<S>& p, T* out, int threads) {
  switch (p.taps()) {
    case 1:
      if (p.weight_row == 1) return transpose_rows(p, out, threads);
      return pack_rows<1>(p, out, threads);
    case 2: return pack_rows<2>(p, out, threads);
    case 4: return pack_rows<4>(p, out, threads);
    default: return pack_rows<0>(p, out, threads);
  }
}

// `phases`: one sum, or two whose columns lie in turn in the result and are written together.
template <class S>
void columns_product(const Correlation<S>* phases, int64_t phase_count, PackedWeight packed, void* workspace,
                     const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t panel = gemm::kPanel<T>;
  constexpr int lanes = kLanes<T>;
  const ColumnsPlan<S> plan = ColumnsPlan<S>::plan(phases, phase_count, num_threads);
  const Correlation<S>& p = phases[0];
  const int64_t positions = p.positions();
  for (int64_t i = 0; i < phase_count; i++)
    if (!plan.is_in_place[i] && !packed.is_done)
      pack_rows(phases[i], (T*)((char*)packed.memory + plan.phase_bytes[i]), plan.threads);
  const bool in_turn = phase_count > 1;
  const int64_t to_step = in_turn ? p.to_stride.spatial[2] : p.axes[2].to_step * p.to_stride.spatial[2];
  const int64_t width = p.axes[2].count + (in_turn ? phases[1].axes[2].count : 0);
  auto multiply = [&](int64_t group, int64_t block, int64_t first, int64_t next, int thread) {
    const int64_t columns = min_of(panel, positions - first);
    const int64_t row = block * plan.block_rows, row_count = min_of(plan.block_rows, p.rows - row);
    const int vectors = (int)ceil_div(columns, lanes);
    const S* from = p.from + group * p.channels * p.from_stride.channel;
    T* b = (T*)((char*)workspace + thread * plan.thread_bytes);
    T* sums = b + (kChunk + 1) * panel;
    T* both = sums + phase_count * plan.block_rows * panel;
    Runs<T> written(p, first, columns);
    if (!in_turn) written.join(to_step);
    // f(run, to, count): the elements of each run of the row's channel.
    auto for_written = [&](int64_t i, const auto& f) __attribute__((always_inline)) {
      const int64_t channel = group * p.rows + row + i;
      for (int64_t w = 0; w < written.count; w++) {
        const Run& run = written.run[w];
        const int64_t left = width - 2 * (run.index[2] - p.axes[2].tap_first);  // in turn: of the row
        f(run, run.to + channel * p.to_stride.channel, in_turn ? min_of(2 * run.count, left) : run.count);
      }
    };
    // Of the rows from `i` on, whose sums of all phases are there.
    auto write = [&](int64_t i, int64_t count) {
      const T* tile = sums + i * panel;
      if (in_turn)
        for (int64_t r = 0; r < count; r++)
          for (int64_t c = 0; c < columns; c += lanes) {
            const T* even = tile + r * panel + c;
            const Vec<T> x = load(even), y = load(even + plan.block_rows * panel);
            store(both + 2 * (r * panel + c), shuffle<InTurn<lanes, 0>>(x, y));
            store(both + 2 * (r * panel + c) + lanes, shuffle<InTurn<lanes, lanes / 2>>(x, y));
          }
      for_written(i, [&](const Run& run, int64_t to, int64_t there) {
        finish({in_turn ? both + 2 * run.column : tile + run.column, count, in_turn ? 2 * panel : panel, there, to,
                p.to_stride.channel, to_step, group * p.rows + row + i, false, 1, run.sample, run.place});
      });
    };
    for (int64_t n = 0; n < phase_count; n++) {
      Correlation<S> phase = phases[n];
      phase.axes[2].count = p.axes[2].count;  // the second may have one less, which is not written
      const int64_t depth = phase.depth();
      const int64_t row_stride = plan.is_in_place[n] ? p.weight_row : depth;
      const T* a = plan.is_in_place[n]
                       ? (const T*)p.weight + group * p.weight_group
                       : (const T*)((const char*)packed.memory + plan.phase_bytes[n]) + group * p.rows * depth;
      a += row * row_stride;
      T* strip = sums + n * plan.block_rows * panel;
      const Runs<T> runs(phase, first, columns);
      int64_t k = 0;
      do {  // once for a depth of 0: zeros
        const int64_t chunk = min_of(kChunk, depth - k);
        gather_columns(phase, from, runs, k, k + chunk, b);
        if (p.style) scale_columns(phase, runs, group, k, k + chunk, b);
        const bool is_last = k + chunk == depth, goes_on = !is_last || next < positions;
        Ahead<S, T> ahead(phase, from,
                          is_last && goes_on ? Runs<T>(phase, next, min_of(panel, positions - next)) : runs,
                          is_last ? 0 : k + chunk, goes_on ? min_of(depth, is_last ? kChunk : k + chunk + kChunk) : 0,
                          row_count / gemm::kTileRows);
        for (int64_t i = 0, count; i < row_count; i += count) {
          count = gemm::next_tile_rows(row_count - i);
          const T* a_tile = a + i * row_stride + k;
          prefetch_rows(a_tile + count * row_stride, row_stride, min_of(count, row_count - i - count), chunk);
          ahead();
          const bool is_written = is_last && n + 1 == phase_count;
          if (is_written && to_step == 1)
            for_written(i, [&](const Run&, int64_t to, int64_t there) {
              finish.prefetch(to, p.to_stride.channel, count, there);
            });
          gemm::tile_of<T, gemm::Lies::by_row>((int)count, vectors)(chunk, a_tile, row_stride, b, strip + i * panel,
                                                                    k == 0);
          if (is_written) write(i, count);
        }
        k += kChunk;
      } while (k < depth);
    }
  };
  const int64_t spans = ceil_div(plan.panels, plan.span);
  parallel_tasks(p.groups * spans * plan.blocks, plan.threads, [&](int64_t task, int thread) {
    const int64_t first = task / plan.blocks % spans * plan.span * panel;
    const int64_t end = min_of(first + plan.span * panel, positions);
    for (int64_t at = first; at < end; at += panel)
      multiply(task / plan.blocks / spans, task % plan.blocks, at, at + panel < end ? at + panel : positions, thread);
  });
}

}  // namespace

}  // namespace PF_ISA::conv
