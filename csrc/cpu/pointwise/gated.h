// y = activation(gate) value, and its backward, in one pass each.
#pragma once
#include "tile.h"

namespace PF_ISA::pointwise {

namespace {

// body(at, offset, count): `count` elements from element `first + at` on lie in one row, `offset` from the beginning of
// a matrix with that row stride.
template <class Body>
PF_INLINE void for_rows_of(int64_t cols, int64_t first, int64_t tile, Body body) {
  int64_t row = first / cols, column = first % cols;
  for (int64_t at = 0, count; at < tile; at += count, row++, column = 0) {
    count = min_of(cols - column, tile - at);
    body(at, row, column, count);
  }
}

template <class S>
PF_INLINE void gather(const void* x, int64_t row_stride, int64_t cols, int64_t first, int64_t count, Acc<S>* z) {
  for_rows_of(cols, first, count, [&](int64_t at, int64_t row, int64_t column, int64_t n) {
    load_tile((const S*)x + row * row_stride + column, n, z + at);
  });
}
template <class S>
PF_INLINE void scatter(void* y, int64_t row_stride, int64_t cols, int64_t first, int64_t count, const Acc<S>* z) {
  for_rows_of(cols, first, count, [&](int64_t at, int64_t row, int64_t column, int64_t n) {
    store_tile((S*)y + row * row_stride + column, n, z + at);
  });
}

template <class A>
PF_INLINE void multiply(int64_t count, const A* a, A* z) {
  for (int64_t i = 0; i < count; i += kLanes<A>) store(z + i, load(a + i) * load(z + i));
}

}  // namespace

void gated_fwd(const GatedFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    parallel_tiles(p.rows * p.cols, num_threads, [&](int64_t first, int64_t count) {
      Tile<A> gate, value;
      gather<S>(p.gate, p.gate_row_stride, p.cols, first, count, gate.at);
      if (p.activation.row >= 0) activate(p.activation, count, gate.at);
      gather<S>(p.value, p.value_row_stride, p.cols, first, count, value.at);
      multiply(count, value.at, gate.at);
      store_tile((S*)p.y + first, count, gate.at);
    });
  });
}

void gated_bwd(const GatedBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    parallel_tiles(p.rows * p.cols, num_threads, [&](int64_t first, int64_t count) {
      Tile<A> gate, value, d;
      gather<S>(p.gate, p.gate_row_stride, p.cols, first, count, gate.at);
      gather<S>(p.value, p.value_row_stride, p.cols, first, count, value.at);
      load_tile((const S*)p.dy + first, count, d.at);
      multiply(count, d.at, value.at);  // what comes to the activation
      if (p.activation.row >= 0) activate_bwd<A, true>(p.activation, count, gate.at, value.at);
      multiply(count, gate.at, d.at);
      scatter<S>(p.dgate, p.dgate_row_stride, p.cols, first, count, value.at);
      scatter<S>(p.dvalue, p.dvalue_row_stride, p.cols, first, count, d.at);
    });
  });
}

}  // namespace PF_ISA::pointwise
