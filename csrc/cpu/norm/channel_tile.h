// Pieces of a tensor with channels, normalised: rows of one channel's positions, which share a mean and a factor, or
// rows of a position's channels, each of which has its own. And an activation over such a piece in the first cache.
#pragma once
#include "../../common/channel_norm.h"
#include "../pointwise/activations.h"
#include "rows.h"

namespace PF_ISA::norm {

namespace {

template <bool kValue>
struct Constant {
  static constexpr bool value = kValue;
};

constexpr int kTileRows = 4;        // of channels, whose sums are added to those before together; that pass together
constexpr int64_t kTileCols = 512;  // of a piece that waits for an activation
constexpr int64_t kTileStride = kTileCols + 16;

// The number that belongs to element j of a row.
template <class T>
struct Same {
  T value;
  PF_INLINE Vec<T> of(const Same& s, int64_t) { return splat<Vec<T>>(s.value); }
  Same from(int64_t) const { return *this; }
};
template <class T>
struct Each {  // tables are as long as whole vectors, so that all of the last one can be read
  const T* values;
  PF_INLINE Vec<T> of(const Each& e, int64_t j) { return load(e.values + j); }
  Each from(int64_t j) const { return {values + j}; }
};

// (x - mean) scale + offset; `mean` is the nearest number of the type to the mean, and what it lacks is in the offset.
template <class C>
struct Affine {
  C mean, scale, offset;
  Affine from(int64_t j) const { return {mean.from(j), scale.from(j), offset.from(j)}; }
};

struct NoActivation {
  static constexpr bool kFromOutput = false, kIsCurved = false;
  template <class V>
  PF_MEMBER V forward(V z) const {
    return z;
  }
  template <class V>
  PF_MEMBER V backward(V dy, V) const {
    return dy;
  }
};

// f(activation) where it is applied in registers; else false.
template <class F>
PF_INLINE bool for_ending(Ending ending, F f) {
  switch (ending) {
    case Ending::none: return f(NoActivation{}), true;
    case Ending::relu: return f(pointwise::Relu{}), true;
    case Ending::silu: return f(pointwise::Silu{}), true;
    case Ending::table: break;
  }
  return false;
}

// A row normalised, with an activation behind it. One row at a time and from its end, as rows are
// taken: side by side, a row's stores would be at the places in a page from which another's loads come soon after.
template <class S, class D, bool kStream, class Act, class C>
PF_INLINE void normalise_row(const Act act, const S* x, const S* residual, D* y, int64_t cols,
                             const Affine<C>& affine) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for_columns_down<T>(0, cols, [&](int64_t j, auto count) {
    V z = fma(load_part(x + j, count) - C::of(affine.mean, j), C::of(affine.scale, j), C::of(affine.offset, j));
    if (residual) z += load_part(residual + j, count);
    store_row<kStream>(y + j, act.forward(z), count);
  });
}

// Vectors side by side, whose numbers wait in registers while rows pass by: of many channels the tables are larger than
// the first cache, and every row would bring them from the second.
constexpr int kStripVectors = 4;

template <int kVectors>
struct Strip {
  static constexpr int vectors = kVectors;
};

// body(j, count, strip) over the strips of a row; and the last one first: see for_columns_down.
template <class T, class Body>
PF_INLINE void for_strips(int64_t cols, Body body) {
  constexpr int lanes = kLanes<T>, width = kStripVectors * lanes;
  int64_t j = 0;
  for (; j + width <= cols; j += width) body(j, WholeVector{}, Strip<kStripVectors>{});
  for (; j + lanes <= cols; j += lanes) body(j, WholeVector{}, Strip<1>{});
  if (j < cols) body(j, cols - j, Strip<1>{});
}
template <class T, class Body>
PF_INLINE void for_strips_down(int64_t cols, Body body) {
  constexpr int lanes = kLanes<T>, width = kStripVectors * lanes;
  int64_t j = cols / lanes * lanes;
  if (j < cols) body(j, cols - j, Strip<1>{});
  for (; j % width; j -= lanes) body(j - lanes, WholeVector{}, Strip<1>{});
  while ((j -= width) >= 0) body(j, WholeVector{}, Strip<kStripVectors>{});
}

// The numbers of a strip.
template <int kVectors, class C, class V>
PF_INLINE void load_strip(const C& numbers, int64_t j, V* strip) {
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) strip[v] = C::of(numbers, j + v * kLanes<Element<V>>);
}

// Sums over rows want a strip of all rows before the next strip, whose sums then wait in registers. The processor's
// prefetch sees little of that, so each line asks for the one that the strip after it takes from the same row, into the
// second cache; the last strip's, for the next rows'. How far that is from a strip that begins at column j. (Zen 4, one
// thread, the microseconds of the backward's two sums, four rows side by side and so: 144 and 130 of 4096 rows of 320
// channels, 186 and 91 of 392 of 2048, both in the third cache; 6800 and 3800 of 25088 of 256.)
template <class T>
PF_INLINE int64_t next_strip(int64_t j, int64_t rows, int64_t stride, int64_t cols) {
  constexpr int64_t width = kStripVectors * kLanes<T>;
  if (j + 2 * width <= cols) return width;
  return rows * stride - (j + width <= cols ? j : 0);
}

// body(row, group) over rows, kTileRows at a time and then one by one.
template <class Body>
PF_INLINE void for_row_groups(int64_t rows, Body body) {
  int64_t row = 0;
  for (; row + kTileRows <= rows; row += kTileRows) body(row, Strip<kTileRows>{});
  for (; row < rows; row++) body(row, Strip<1>{});
}

// How many rows pass a strip together, for loops that store. One where the tensors, of so many bytes together, leave
// the third cache: what is stored is then read first, which the processor does ahead of time for one row after another.
// (Zen 4, one thread, dx alone, the microseconds by 1 and by 4 rows: 173 and 113 of 512 rows of 1280 channels, 506 and
// 347 of 25088 of 64, of which a row is one strip; 292 and 430 of 4096 of 320, which are 16 MB, 2.9 and 15 ms of 25088
// of 256.)
constexpr int64_t kTogetherBytes = 10 << 20;
template <class T>
PF_INLINE int64_t rows_together(int64_t cols, int64_t bytes) {
  return cols <= kStripVectors * kLanes<T> || bytes < kTogetherBytes ? kTileRows : 1;
}

// body(sample, first row, rows, number of the block) for the blocks [begin, end) of all matrices; and from the last to
// the first: what the pass before has read last is still in the cache.
template <class Body>
PF_INLINE void at_block(const ChannelNormPlan& plan, int64_t block, Body body) {
  const int64_t first = block % plan.blocks * plan.block_rows;
  body(block / plan.blocks, first, min_of(plan.block_rows, plan.rows - first), block);
}
template <class Body>
PF_INLINE void for_blocks(const ChannelNormPlan& plan, int64_t begin, int64_t end, Body body) {
  for (int64_t block = begin; block < end; block++) at_block(plan, block, body);
}
template <class Body>
PF_INLINE void for_blocks_down(const ChannelNormPlan& plan, int64_t begin, int64_t end, Body body) {
  for (int64_t block = end - 1; block >= begin; block--) at_block(plan, block, body);
}

// Of so many tensors of a problem.
template <class S>
PF_INLINE int64_t bytes_of(const ChannelNormShape& s, int tensors) {
  return s.batch * s.channels * s.positions * (int64_t)sizeof(S) * tensors;
}

// body(row, count) for the rows of a block, `step` of them at a time, the last ones first.
template <class Body>
PF_INLINE void for_rows_down(int64_t rows, int64_t step, Body body) {
  for (int64_t row = (rows - 1) / step * step; row >= 0; row -= step) body(row, min_of(step, rows - row));
}

// The same of rows that are `stride` apart.
template <class S, class D, bool kStream, class Act, class C>
PF_INLINE void normalise_rows(const Act act, const S* x, const S* residual, D* y, int64_t rows, int64_t stride,
                              int64_t cols, const Affine<C>& affine) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  if (rows == 1) return normalise_row<S, D, kStream>(act, x, residual, y, cols, affine);
  for_strips_down<T>(cols, [&](int64_t j0, auto count, auto strip) {
    constexpr int vectors = decltype(strip)::vectors;
    V mean[vectors], scale[vectors], offset[vectors];
    load_strip<vectors>(affine.mean, j0, mean), load_strip<vectors>(affine.scale, j0, scale);
    load_strip<vectors>(affine.offset, j0, offset);
    for (int64_t row = rows - 1; row >= 0; row--) {
      PF_UNROLL
      for (int v = vectors - 1; v >= 0; v--) {
        const int64_t at = row * stride + j0 + v * kLanes<T>;
        V z = fma(load_part(x + at, count) - mean[v], scale[v], offset[v]);
        if (residual) z += load_part(residual + at, count);
        store_row<kStream>(y + at, act.forward(z), count);
      }
    }
  });
}
// Pieces of rows in the first cache. Of a row all vectors are computed on, the last one's rest as well.
template <class T>
struct Tile {
  T z[kTileRows * kTileStride] __attribute__((aligned(64)));
  T dz[kTileRows * kTileStride] __attribute__((aligned(64)));
};

// Functions of their own for each activation: in one that holds them all the compiler leaves constants in the loops.
template <class T, class Act>
__attribute__((noinline)) void activate_row(const Act act, T* z, int64_t cols) {
  for (int64_t j = 0; j < cols; j += kLanes<T>) store(z + j, act.forward(load(z + j)));
}

template <class T, class Act>
__attribute__((noinline)) void differentiate_row(const Act act, bool saves_output, const T* z, T* dz, int64_t cols) {
  for (int64_t j = 0; j < cols; j += kLanes<T>) {
    const Vec<T> at = load(z + j);
    store(dz + j, act.backward(load(dz + j), saves_output ? act.forward(at) : at));
  }
}

template <class S, class D, bool kStream>
PF_INLINE void convert_row(const S* from, D* to, int64_t cols) {
  for_columns_down<Acc<S>>(
      0, cols, [&](int64_t j, auto count) { store_row<kStream>(to + j, load_part(from + j, count), count); });
}

// body(j, cols) over pieces of a row that a tile holds; the last one first, as each is read from its end: the
// processor's prefetch follows one direction, and with the other for pieces of 2 KB memory was five times as slow.
template <class Body>
PF_INLINE void for_pieces_down(int64_t cols, Body body) {
  for (int64_t j = (cols - 1) / kTileCols * kTileCols; j >= 0; j -= kTileCols) body(j, min_of(kTileCols, cols - j));
}

// The gradient before the activation, of a piece of kRows rows: into tile.dz.
template <class S, int kRows, class C>
PF_INLINE void fill_dz(const ChannelNormBwd& p, Tile<Acc<S>>& tile, const S* dy, const S* x, const S* residual,
                       int64_t stride, int64_t cols, const Affine<C>& affine) {
  typedef Acc<S> T;
  for (int r = kRows - 1; r >= 0; r--) {
    normalise_row<S, T, false>(NoActivation{}, x + r * stride, residual ? residual + r * stride : residual,
                               tile.z + r * kTileStride, cols, affine);
    convert_row<S, T, false>(dy + r * stride, tile.dz + r * kTileStride, cols);
  }
  pointwise::for_activation(p.activation, [&](auto act) {
    for (int r = 0; r < kRows; r++)
      differentiate_row<T>(act, p.saves_output, tile.z + r * kTileStride, tile.dz + r * kTileStride, cols);
  });
}

}  // namespace

}  // namespace PF_ISA::norm
