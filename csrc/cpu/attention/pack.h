// From tensors to the operands of products, and back: transposition, and rows of any stride.
#pragma once
#include "../simd/transpose.h"
#include "tile.h"

namespace PF_ISA::attention {

namespace {

template <class V>
using Lanes = typename VecOf<Element<V>>::mask;

template <class V>
PF_INLINE Lanes<V> lane_index() {
  Lanes<V> index;
  for (int i = 0; i < kLanes<Element<V>>; i++) index[i] = i;
  return index;
}

template <class S>
__attribute__((noinline)) Vec<Acc<S>> gather(const S* p, int64_t stride, int64_t count) {
  Acc<S> buffer[kLanes<Acc<S>>] __attribute__((aligned(64)));
#pragma GCC unroll 1
  for (int i = 0; i < kLanes<Acc<S>>; i++) buffer[i] = i < count ? get(p + i * stride) : Acc<S>(0);
  return *(const Vec<Acc<S>>*)buffer;
}
// Elements 0 .. count - 1 of a strided row, then zeros.
template <class S>
PF_INLINE Vec<Acc<S>> load_strided(const S* p, int64_t stride, int64_t count) {
  return stride == 1 && count >= kLanes<Acc<S>> ? load(p) : gather(p, stride, count);
}
// The same as operands.
template <class T, class S>
PF_INLINE Vec<T> load_strided_operands(const S* p, int64_t stride, int64_t count) {
  if constexpr (kTerms<T> == 1) {
    return load_strided(p, stride, count);
  } else {
    if (stride == 1 && count >= kTerms<T> * kLanes<T>) return load_operands<T>(p);
    return join_exact(gather(p, 2 * stride, (count + 1) / 2), gather(p + stride, 2 * stride, count / 2));
  }
}

// to[col][row] = scale * from(row)[col] for `queries` rows in lanes, zero in the lanes from `count` on; of pairs, which
// are not scaled, two columns a row of `to`. from(row) is the address of a row, read with `col_stride`.
template <class S, class T, class Row>
PF_INLINE void pack_transposed(Row from, int64_t col_stride, int64_t count, int64_t cols, Acc<T> scale, T* to) {
  typedef Vec<T> V;
  constexpr int n = kLanes<T>, queries = kQueries<T>, terms = kTerms<T>;
  const int64_t depth = ceil_div(cols, terms);
  for (int first = 0; first < queries; first += n) {
    for (int64_t d = 0; d < depth; d += n) {
      V rows[n];
      if (first + n <= count && (d + n) * terms <= cols && col_stride == 1) {  // in registers
        PF_UNROLL
        for (int i = 0; i < n; i++) rows[i] = load_operands<T>(from(first + i) + d * terms);
        transpose(rows);
        PF_UNROLL
        for (int i = 0; i < n; i++) store(to + (d + i) * queries + first, scale_operand(rows[i], scale));
        continue;
      }
      for (int i = 0; i < n; i++)
        rows[i] = first + i < count
                      ? load_strided_operands<T>(from(first + i) + d * terms * col_stride, col_stride, cols - d * terms)
                      : V{};
      transpose_in_memory(rows);
      for (int i = 0; i < n; i++)
        if (d + i < depth) store(to + (d + i) * queries + first, scale_operand(rows[i], scale));
    }
  }
}

// to(row)[col] = scale[row] * from[col][row]: the way back. `scale` has a value a lane.
template <class S, class A, class Row>
PF_INLINE void unpack_transposed(const A* from, int64_t count, int64_t cols, const Vec<A>* scale, Row to) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
  for (int first = 0; first < count; first += n) {
    V factor = scale[first / n];
    for (int64_t col = 0; col < cols; col += n) {
      V rows[n];
      if (first + n <= count && col + n <= cols) {
        PF_UNROLL
        for (int i = 0; i < n; i++) rows[i] = load(from + (col + i) * queries + first) * factor;
        transpose(rows);
        PF_UNROLL
        for (int i = 0; i < n; i++) store((S*)to(first + i) + col, rows[i]);
        continue;
      }
      for (int i = 0; i < n; i++) rows[i] = col + i < cols ? load(from + (col + i) * queries + first) * factor : V{};
      transpose_in_memory(rows);
      for (int i = 0; i < n; i++)
        if (first + i < count) store_n((S*)to(first + i) + col, rows[i], cols - col);
    }
  }
}

// Rows of a matrix as operands, adjacent ones along the columns: where they lie, when they lie so, else copied to
// `buffer`, each as wide as `width` elements and zero from `cols` on.
template <class T, class S>
PF_INLINE Rows<T> rows_of(const S* from, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols,
                          int64_t width, T* buffer) {
  constexpr int n = kLanes<T>, terms = kTerms<T>;
  if constexpr (sizeof(S) * terms == sizeof(T)) {
    if (col_stride == 1 && width == cols && cols % terms == 0 && row_stride % terms == 0)
      return {(const T*)from, row_stride / terms};
  }
  const int64_t step = ceil_div(width, terms);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t d = 0; d < step; d += n)
      store_n(buffer + row * step + d,
              load_strided_operands<T>(from + row * row_stride + d * terms * col_stride, col_stride,
                                       max_of(0, cols - d * terms)),
              step - d);
  return {buffer, step};
}

// The same with adjacent terms along the rows: row r of the result holds rows r * terms, ..., zero from `rows` on.
template <class T, class S>
PF_INLINE Rows<T> joined_rows_of(const S* from, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols,
                                 int64_t width, T* buffer) {
  if constexpr (kTerms<T> == 1) {
    return rows_of<T>(from, row_stride, col_stride, rows, cols, width, buffer);
  } else {
    constexpr int n = kLanes<T>;
    for (int64_t row = 0; row < rows; row += 2) {
      const S* even = from + row * row_stride;
      const bool has_odd = row + 1 < rows;
      T* to = buffer + row / 2 * width;
      int64_t col = 0;
      if (has_odd && col_stride == 1)
        for (; col + 2 * n <= cols; col += 2 * n) interleave_rows(even + col, even + row_stride + col, to + col);
      for (; col < width; col += n) {
        const S* at = even + col * col_stride;
        const int64_t count = max_of(0, cols - col);
        store_n(to + col,
                join_exact(load_strided(at, col_stride, count),
                           has_odd ? load_strided(at + row_stride, col_stride, count) : vf{}),
                width - col);
      }
    }
    return {buffer, width};
  }
}

}  // namespace

}  // namespace PF_ISA::attention
