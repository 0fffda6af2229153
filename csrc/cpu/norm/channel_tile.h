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

constexpr int kTileRows = 4;        // of positions, whose channels' tables are read once
constexpr int64_t kTileCols = 512;  // of a piece that waits for an activation

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

// kRows rows of what is before the activation, with ReLU behind it if kRelu; rows of x and residual are `stride` apart.
template <class S, class D, int kRows, bool kRelu, bool kStream, class C>
PF_INLINE void normalise_rows(const S* x, const S* residual, int64_t stride, D* y, int64_t y_stride, int64_t cols,
                              const Affine<C>& affine) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for_columns_down<T>(cols, [&](int64_t j, auto count) {
    const V mean = C::of(affine.mean, j), scale = C::of(affine.scale, j), offset = C::of(affine.offset, j);
    V z[kRows];  // all loads before the first store: see for_columns_down
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      z[r] = fma(load_part(x + r * stride + j, count) - mean, scale, offset);
      if (residual) z[r] += load_part(residual + r * stride + j, count);
      if (kRelu) z[r] = select(z[r] < V{}, V{}, z[r]);
    }
    PF_UNROLL
    for (int r = 0; r < kRows; r++) store_row<kStream>(y + r * y_stride + j, z[r], count);
  });
}

// Pieces of kRows rows in the first cache. Of a row all vectors are computed on, the last one's rest as well.
template <class T>
struct Tile {
  T z[kTileRows * kTileCols] __attribute__((aligned(64)));
  T dz[kTileRows * kTileCols] __attribute__((aligned(64)));
};

template <class T>
void activate_tile(const Activation& activation, T* z, int rows, int64_t cols) {
  pointwise::for_activation(activation, [&](auto act) {
    for (int r = 0; r < rows; r++)
      for (int64_t j = 0; j < cols; j += kLanes<T>)
        store(z + r * kTileCols + j, act.forward(load(z + r * kTileCols + j)));
  });
}

// dz: dy on the way in, dy times the derivative on the way out.
template <class T>
void differentiate_tile(const Activation& activation, bool saves_output, const T* z, T* dz, int rows, int64_t cols) {
  pointwise::for_activation(activation, [&](auto act) {
    for (int r = 0; r < rows; r++)
      for (int64_t j = 0; j < cols; j += kLanes<T>) {
        T* at = dz + r * kTileCols + j;
        Vec<T> saved = load(z + r * kTileCols + j);
        if (saves_output) saved = act.forward(saved);
        store(at, act.backward(load(at), saved));
      }
  });
}

template <class S, class D, bool kStream>
PF_INLINE void convert_row(const S* from, D* to, int64_t cols) {
  for_columns_down<Acc<S>>(
      cols, [&](int64_t j, auto count) { store_row<kStream>(to + j, load_part(from + j, count), count); });
}

// body(j, cols) over pieces of a row that a tile holds.
template <class Body>
PF_INLINE void for_pieces(int64_t cols, Body body) {
  for (int64_t j = 0; j < cols; j += kTileCols) body(j, min_of(kTileCols, cols - j));
}

// The gradient before the activation, of a piece: into tile.dz.
template <class S, int kRows, class C>
PF_INLINE void fill_dz(const ChannelNormBwd& p, Tile<Acc<S>>& tile, const S* dy, const S* x, const S* residual,
                       int64_t stride, int64_t cols, const Affine<C>& affine) {
  normalise_rows<S, Acc<S>, kRows, false, false>(x, residual, stride, tile.z, kTileCols, cols, affine);
  for (int r = 0; r < kRows; r++) convert_row<S, Acc<S>, false>(dy + r * stride, tile.dz + r * kTileCols, cols);
  differentiate_tile(p.activation, p.saves_output, tile.z, tile.dz, kRows, cols);
}

}  // namespace

}  // namespace PF_ISA::norm
