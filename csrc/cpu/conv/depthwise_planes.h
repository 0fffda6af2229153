// Depthwise convolution of images whose rows lie along memory (NCHW), or of any: a vector is of places of a row. The
// part of a plane that a block of results reads is copied, widened and with its border of zeros, to a buffer in the
// first-level cache, in which a stride of s is s buffers of every s-th row or column: so every tap of every convolution
// is an offset there. A channel may be read by several channels of the result.
#pragma once
#include "columns.h"
#include "depthwise_rows.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kBlockBytes = 24 << 10;  // of the buffer, beside which results must fit the first-level cache
constexpr int64_t kMaxTileVectors = 4;

// One dimension of the buffer. Result j, tap t is at slot(t) and j + shift(t) there.
struct BufferAxis {
  int64_t step, tap_step;
  int64_t slots;  // every step-th element of the source, as many as taps read
  int64_t reach;  // elements of a slot beyond the results

  explicit BufferAxis(const Axis& a) : step(a.from_step), tap_step(a.tap_step) {
    slots = min_of(a.taps, step / greatest_common_divisor(step, tap_step));
    reach = a.taps ? shift(a.taps - 1) : 0;
  }
  int64_t slot(int64_t tap) const { return tap % slots; }
  int64_t shift(int64_t tap) const { return tap * tap_step / step; }
  // What element 0 of a slot is, from where tap 0 of result 0 reads.
  int64_t start(int64_t slot) const { return step == 1 ? 0 : slot * tap_step % step; }
};

// How results are cut into blocks, [rows][columns] of one plane, and the buffer of a block:
// [depth taps][height slots][width slots][buffer_rows][pitch].
template <class S>
struct BlockPlan {
  typedef Acc<S> T;
  BufferAxis height, width;
  int64_t rows, columns;
  int64_t row_blocks, column_blocks;
  int64_t buffer_rows, pitch;

  explicit BlockPlan(const Correlation<S>& p) : height(p.axes[1]), width(p.axes[2]) {
    const int64_t elements = kBlockBytes / (int64_t)sizeof(T) / max_of(1, p.axes[0].taps);
    const int64_t slots = max_of(1, height.slots * width.slots);
    columns = min_of(max_of(1, p.axes[2].count), max_of(8 * kLanes<T>, elements / slots - width.reach));
    column_blocks = ceil_div(p.axes[2].count, columns);
    pitch = columns + width.reach;
    const int64_t fits = elements / slots / pitch - height.reach;
    rows = min_of(max_of(1, p.axes[1].count), max_of(fits, 8));
    row_blocks = ceil_div(p.axes[1].count, rows);
    rows = max_of(1, ceil_div(p.axes[1].count, max_of(1, row_blocks)));
    buffer_rows = rows + height.reach;
  }
  int64_t slot_size() const { return buffer_rows * pitch; }
  int64_t blocks(const Correlation<S>& p) const { return p.axes[0].count * row_blocks * column_blocks; }
  // With what is read and written past the end.
  int64_t buffer_size(const Correlation<S>& p) const {
    return round_up(p.axes[0].taps * height.slots * width.slots * slot_size() + (kMaxTileVectors + 1) * kLanes<T>, 64);
  }
  int64_t offset(int64_t d, int64_t h, int64_t w) const {
    const int64_t slot = (d * height.slots + height.slot(h)) * width.slots + width.slot(w);
    return slot * slot_size() + height.shift(h) * pitch + width.shift(w);
  }
};

// A block of results, and the taps of its depth that are inside.
struct Block {
  int64_t j[kConvDims], rows, columns;
  int64_t d;  // what tap 0 of the depth reads
  Inside depth;

  template <class S>
  Block(const Correlation<S>& p, const BlockPlan<S>& plan, int64_t i)
      : j{i / plan.column_blocks / plan.row_blocks, i / plan.column_blocks % plan.row_blocks * plan.rows,
          i % plan.column_blocks * plan.columns},
        rows(min_of(plan.rows, p.axes[1].count - j[1])),
        columns(min_of(plan.columns, p.axes[2].count - j[2])),
        d(j[0] * p.axes[0].from_step + p.axes[0].tap_first),
        depth(d, p.axes[0].tap_step, p.axes[0].taps, p.axes[0].from) {}
};

// What a block reads of `plane`.
template <class S, class T>
void fill_buffer(const Correlation<S>& p, const BlockPlan<S>& plan, const Block& block, const S* plane, T* buffer) {
  const ConvStrides& stride = p.from_stride;
  const Axis &height = p.axes[1], &width = p.axes[2];
  const int64_t rows = block.rows + plan.height.reach, columns = block.columns + plan.width.reach;
  for (int64_t d = block.depth.begin; d < block.depth.end; d++)
    for (int64_t hs = 0; hs < plan.height.slots; hs++)
      for (int64_t ws = 0; ws < plan.width.slots; ws++) {
        const int64_t h = block.j[1] * height.from_step + height.tap_first + plan.height.start(hs);
        const int64_t w = block.j[2] * width.from_step + width.tap_first + plan.width.start(ws);
        const Inside there(w, width.from_step, columns, width.from);
        const S* from = plane + (block.d + d * p.axes[0].tap_step) * stride.spatial[0] +
                        (w + there.begin * width.from_step) * stride.spatial[2];
        T* to = buffer + ((d * plan.height.slots + hs) * plan.width.slots + ws) * plan.slot_size();
        clear(to, 0, there.begin);
        to += there.begin;
        // What is zero at the end of a row and at the beginning of the next one follows its elements.
        for (int64_t i = 0; i < rows; i++, to += plan.pitch) {
          const int64_t at = h + i * height.from_step;
          const int64_t count = is_inside(at, height.from) ? there.end - there.begin : 0;
          copy(from + at * stride.spatial[1], width.from_step * stride.spatial[2], count, to);
          clear(to, count, plan.pitch);
        }
      }
}

// Where taps are in the buffer, and what they are multiplied with; those of the depth that are outside left out.
template <class T>
struct Taps {
  const int64_t* offset;
  const T* weight;
  int64_t count;
};

// Sums of kVectors vectors of one row.
template <class T, int kVectors>
PF_INLINE void sum_vectors(const T* from, const Taps<T>& taps, T* out) {
  Vec<T> sums[kVectors];
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) sums[v] = Vec<T>{};
  for (int64_t t = 0; t < taps.count; t++) {
    const Vec<T> weight = splat<Vec<T>>(taps.weight[t]);
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) sums[v] = fma(weight, load(from + taps.offset[t] + v * kLanes<T>), sums[v]);
  }
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) store(out + v * kLanes<T>, sums[v]);
}

template <class T>
void sum_row(const T* from, const Taps<T>& taps, int64_t count, T* out) {
  constexpr int lanes = kLanes<T>;
  for (; count > 3 * lanes; count -= 4 * lanes, from += 4 * lanes, out += 4 * lanes) sum_vectors<T, 4>(from, taps, out);
  if (count > 2 * lanes) return sum_vectors<T, 3>(from, taps, out);
  if (count > lanes) return sum_vectors<T, 2>(from, taps, out);
  if (count > 0) sum_vectors<T, 1>(from, taps, out);
}

// The same of kRows rows `pitch` apart, of a kernel of kHeight rows whose taps read neighbouring rows: what is loaded
// once serves all of them. out: rows `out_pitch` apart.
template <class T, int kHeight, int kRows, int kVectors>
PF_INLINE void sum_vectors_of_rows(const T* from, int64_t pitch, const Taps<T>& taps, int64_t width, T* out,
                                   int64_t out_pitch) {
  Vec<T> sums[kRows][kVectors];
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) sums[r][v] = Vec<T>{};
  for (int64_t w = 0; w < width; w++) {
    Vec<T> weight[kHeight];
    PF_UNROLL
    for (int h = 0; h < kHeight; h++) weight[h] = splat<Vec<T>>(taps.weight[h * width + w]);
    const T* at = from + taps.offset[w];
    PF_UNROLL
    for (int i = 0; i < kRows + kHeight - 1; i++) {
      Vec<T> x[kVectors];
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) x[v] = load(at + i * pitch + v * kLanes<T>);
      PF_UNROLL
      for (int r = 0; r < kRows; r++)
        if (i >= r && i - r < kHeight) {
          PF_UNROLL
          for (int v = 0; v < kVectors; v++) sums[r][v] = fma(weight[i - r], x[v], sums[r][v]);
        }
    }
  }
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) store(out + r * out_pitch + v * kLanes<T>, sums[r][v]);
}

constexpr int kRowsAtOnce = 7;  // sides of images are often multiples of it

template <class T, int kHeight>
void sum_rows(const T* from, int64_t pitch, const Taps<T>& taps, int64_t width, int64_t count, T* out,
              int64_t out_pitch) {
  constexpr int lanes = kLanes<T>;
  for (; count > lanes; count -= 2 * lanes, from += 2 * lanes, out += 2 * lanes)
    sum_vectors_of_rows<T, kHeight, kRowsAtOnce, 2>(from, pitch, taps, width, out, out_pitch);
  if (count > 0) sum_vectors_of_rows<T, kHeight, kRowsAtOnce, 1>(from, pitch, taps, width, out, out_pitch);
}

template <class T>
using SumRowsOf = void (*)(const T* from, int64_t pitch, const Taps<T>& taps, int64_t width, int64_t count, T* out,
                           int64_t out_pitch);

// For one depth; null: row by row.
template <class T>
SumRowsOf<T> sum_rows_of(const Axis (&axes)[kConvDims]) {
  if (axes[0].taps != 1 || axes[1].from_step != 1 || axes[1].tap_step != 1) return nullptr;
  switch (axes[1].taps) {
    case 3: return sum_rows<T, 3>;
    case 5: return sum_rows<T, 5>;
    case 7: return sum_rows<T, 7>;
    default: return nullptr;
  }
}

template <class S>
struct DepthwisePlanesPlan {
  typedef Acc<S> T;
  int threads;
  BlockPlan<S> block;
  int64_t blocks, task_blocks, tasks;
  int64_t out_pitch;
  int64_t weight_bytes, offset_bytes, buffer_bytes, thread_bytes;

  DepthwisePlanesPlan(const Correlation<S>& p, int num_threads) : threads(p.threads(num_threads)), block(p) {
    blocks = p.batch * p.groups * block.blocks(p);
    const int64_t products = max_of(1, p.rows * block.rows * block.columns * p.taps());
    task_blocks = max_of(1, min_of(ceil_div(kTaskProducts, products), blocks / (4 * threads)));
    tasks = ceil_div(blocks, task_blocks);
    out_pitch = round_up(block.columns, kMaxTileVectors * kLanes<T>);
    weight_bytes = round_up(p.groups * p.rows * p.taps() * sizeof(T), 64);
    offset_bytes = round_up(p.taps() * sizeof(int64_t), 64);
    buffer_bytes = block.buffer_size(p) * sizeof(T);
    thread_bytes = buffer_bytes + round_up(kRowsAtOnce * out_pitch * sizeof(T), 64);
  }
  int64_t bytes() const { return weight_bytes + offset_bytes + threads * thread_bytes; }
};

template <class S>
void fill_offsets(const Correlation<S>& p, const BlockPlan<S>& plan, int64_t* offset) {
  for (int64_t d = 0; d < p.axes[0].taps; d++)
    for (int64_t h = 0; h < p.axes[1].taps; h++)
      for (int64_t w = 0; w < p.axes[2].taps; w++) *offset++ = plan.offset(d, h, w);
}

template <class S>
void depthwise_planes(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const DepthwisePlanesPlan<S> plan(p, num_threads);
  char* memory = (char*)workspace;
  const T* weight = (const T*)memory;
  const int64_t* offset = (const int64_t*)(memory + plan.weight_bytes);
  pack_rows(p, (T*)memory, p.groups * p.rows * p.taps() < kElementwiseGrain ? 1 : plan.threads);
  fill_offsets(p, plan.block, (int64_t*)(memory + plan.weight_bytes));
  const int64_t taps = p.taps(), depth_taps = p.axes[1].taps * p.axes[2].taps, pitch = plan.block.pitch;
  const int64_t row_step = p.axes[1].to_step * p.to_stride.spatial[1];
  const int64_t to_step = p.axes[2].to_step * p.to_stride.spatial[2], of_plane = plan.block.blocks(p);
  const SumRowsOf<T> sum_rows = sum_rows_of<T>(p.axes);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int thread) {
    T* buffer = (T*)(memory + plan.weight_bytes + plan.offset_bytes + thread * plan.thread_bytes);
    T* sums = (T*)((char*)buffer + plan.buffer_bytes);
    int64_t i = task * plan.task_blocks, b = i % of_plane;
    const int64_t last = min_of(plan.blocks, i + plan.task_blocks);
    Block block(p, plan.block, b);
    for (int64_t group = i / of_plane % p.groups, n = i / of_plane / p.groups; i < last; i++) {
      fill_buffer(p, plan.block, block, p.from + n * p.from_stride.outer + group * p.from_stride.channel, buffer);
      const int64_t first_tap = block.depth.begin * depth_taps, depths = block.depth.end - block.depth.begin;
      for (int64_t r = 0; r < p.rows; r++) {
        const int64_t channel = group * p.rows + r;
        const Taps<T> there = {offset + first_tap, weight + channel * taps + first_tap, depths * depth_taps};
        for (int64_t done = 0, count; done < block.rows; done += count) {
          int64_t row = done;
          if (sum_rows && depths && block.rows >= kRowsAtOnce) {
            row = min_of(done, block.rows - kRowsAtOnce);  // the last ones sum some once more
            count = row + kRowsAtOnce - done;
            sum_rows(buffer + row * pitch, pitch, there, p.axes[2].taps, block.columns, sums, plan.out_pitch);
          } else {
            count = 1;
            sum_row(buffer + row * pitch, there, block.columns, sums);
          }
          const Place place = {n, {block.j[0], block.j[1] + done, block.j[2]}};
          finish({sums + (done - row) * plan.out_pitch, count, plan.out_pitch, block.columns,
                  place.to(p) + channel * p.to_stride.channel, row_step, to_step, channel, false});
        }
      }
      if (of_plane == 1 || ++b == of_plane) {
        b = 0;
        if (++group == p.groups) group = 0, n++;
      }
      if (of_plane > 1) block = Block(p, plan.block, b);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
