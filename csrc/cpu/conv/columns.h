// A convolution of images whose rows lie along memory (NCHW): results are columns, a panel of them at a time, and the
// channels of the result are rows. The weight is read as it is, [row][channel][tap]; what the taps of a panel read is
// gathered for one chunk of the depth, in L1, so nothing as large as an unfolded image is ever stored.
#pragma once
#include "finish.h"
#include "problem.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kMaxBlockRows = 80 * gemm::kTileRows;

// Neighbouring columns of a panel whose taps read neighbours of one row.
struct Run {
  int64_t column, count;
  int64_t index[kConvDims];  // where tap 0 of the first reads
  int64_t from, to;          // element of index 0 of all dimensions; of the first result
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
      r.to = place.to(p);
      column += r.count;
      place.next_row(p);
    }
  }
  // Of runs that follow one another in the result, one: for writing only.
  void join(int64_t step) {
    int64_t last = 0;
    for (int64_t i = 1; i < count; i++) {
      if (run[i].to == run[last].to + run[last].count * step)
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
      copy(plane, out, [](const S* at, uint32_t there) __attribute__((always_inline)) {
        return load_masked(at, there);
      });
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

// How the product is cut, and what it works in.
template <class S>
struct ColumnsPlan {
  typedef Acc<S> T;
  bool is_in_place;  // the weight
  int threads;
  int64_t panels, block_rows, blocks;
  int64_t weight_bytes, thread_bytes;

  static ColumnsPlan plan(const Correlation<S>& p, int num_threads) {
    ColumnsPlan plan;
    int64_t natural = 1;
    bool is_natural = sizeof(S) == sizeof(T);
    for (int i = kConvDims - 1; i >= 0; i--) {
      const Axis& a = p.axes[i];
      if (a.taps > 1) is_natural &= p.weight_tap[i] * a.weight_step == natural;
      is_natural &= a.weight_first == 0;
      natural *= a.taps;
    }
    plan.is_in_place = is_natural && (p.channels == 1 || p.weight_channel == natural);
    plan.threads = p.threads(num_threads);
    plan.panels = ceil_div(p.positions(), gemm::kPanel<T>);
    const int64_t tasks = 4 * plan.threads, there = max_of(1, plan.panels * p.groups);
    plan.blocks =
        max_of(ceil_div(p.rows, kMaxBlockRows), plan.threads > 1 && there < tasks ? ceil_div(tasks, there) : 1);
    plan.block_rows = max_of(round_up(ceil_div(p.rows, plan.blocks), gemm::kTileRows), gemm::kTileRows);
    plan.blocks = ceil_div(p.rows, plan.block_rows);
    plan.weight_bytes = plan.is_in_place ? 0 : round_up(p.groups * p.rows * p.depth() * sizeof(T), 64);
    plan.thread_bytes = (kChunk + 1 + plan.block_rows + 1) * gemm::kPanel<T> * sizeof(T);
    return plan;
  }
  int64_t bytes() const { return weight_bytes + threads * thread_bytes; }
};

// The weight as [group][row][channel][tap]. Channels are the outer loop of a few rows: of the input's gradient those
// rows are adjacent in the weight.
template <class S, class T>
void pack_rows(const Correlation<S>& p, T* out, int threads) {
  constexpr int64_t few = 32;
  const Axis(&axes)[kConvDims] = p.axes;
  const int64_t depth = p.depth(), blocks = ceil_div(p.rows, few);
  int64_t step[kConvDims];
  for (int i = 0; i < kConvDims; i++) step[i] = axes[i].weight_step * p.weight_tap[i];
  parallel_ranges(p.groups * blocks, 1, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t group = i / blocks, begin = i % blocks * few, end = min_of(p.rows, begin + few);
      const S* from = p.weight + group * p.weight_group + p.weight_at(0, 0, 0);
      for (int64_t c = 0; c < p.channels; c++)
        for (int64_t row = begin; row < end; row++) {
          const S* at = from + row * p.weight_row + c * p.weight_channel;
          T* to = out + (group * p.rows + row) * depth + c * p.taps();
          for (int64_t d = 0; d < axes[0].taps; d++)
            for (int64_t h = 0; h < axes[1].taps; h++)
              for (int64_t w = 0; w < axes[2].taps; w++) *to++ = get(at + d * step[0] + h * step[1] + w * step[2]);
        }
    }
  });
}

template <class S>
void columns_product(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t panel = gemm::kPanel<T>;
  const ColumnsPlan<S> plan = ColumnsPlan<S>::plan(p, num_threads);
  const int64_t depth = p.depth(), positions = p.positions();
  char* memory = (char*)workspace;
  const T* rows = (const T*)memory;
  int64_t row_stride = depth, group_stride = p.rows * depth;
  if (plan.is_in_place) {
    rows = (const T*)p.weight;
    row_stride = p.weight_row;
    group_stride = p.weight_group;
  } else {
    pack_rows(p, (T*)memory, plan.threads);
  }
  const int64_t to_step = p.axes[2].to_step * p.to_stride.spatial[2];
  parallel_tasks(p.groups * plan.panels * plan.blocks, plan.threads, [&](int64_t task, int thread) {
    const int64_t block = task % plan.blocks, group = task / plan.blocks / plan.panels;
    const int64_t first = task / plan.blocks % plan.panels * panel, columns = min_of(panel, positions - first);
    const int64_t row = block * plan.block_rows, row_count = min_of(plan.block_rows, p.rows - row);
    const int vectors = (int)ceil_div(columns, kLanes<T>);
    const S* from = p.from + group * p.channels * p.from_stride.channel;
    const T* a = rows + group * group_stride + row * row_stride;
    T* b = (T*)(memory + plan.weight_bytes + thread * plan.thread_bytes);
    T* strip = b + (kChunk + 1) * panel;
    const Runs<T> runs(p, first, columns);
    Runs<T> written = runs;
    written.join(to_step);
    int64_t k = 0;
    do {  // once for a depth of 0: zeros
      const int64_t chunk = min_of(kChunk, depth - k);
      gather_columns(p, from, runs, k, k + chunk, b);
      for (int64_t i = 0, count; i < row_count; i += count) {
        count = gemm::next_tile_rows(row_count - i);
        const T* a_tile = a + i * row_stride + k;
        prefetch_rows(a_tile + count * row_stride, row_stride, min_of(count, row_count - i - count), chunk);
        T* tile = strip + i * panel;
        gemm::tile_of<T, gemm::Lies::by_row>((int)count, vectors)(chunk, a_tile, row_stride, b, tile, k == 0);
        if (k + chunk < depth) continue;
        const int64_t channel = group * p.rows + row + i;
        for (int64_t w = 0; w < written.count; w++) {
          const Run& run = written.run[w];
          finish({tile + run.column, count, panel, run.count, run.to + channel * p.to_stride.channel,
                  p.to_stride.channel, to_step, channel, false, 1});
        }
      }
      k += kChunk;
    } while (k < depth);
  });
}

}  // namespace

}  // namespace PF_ISA::conv
