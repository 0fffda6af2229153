// Columns: the elements of one are `step` apart, and the columns are adjacent, so that each lane of a vector has its
// own. A block of columns is copied as it is read, for a stride that is a power of two sends all of a column to one set
// of every cache. Of columns too long for that the memory is read once for each pass.
#pragma once
#include "vectors.h"

namespace PF_ISA::softmax {

namespace {

constexpr int kBlock = 4;  // vectors of columns that are walked together: lines of memory are whole

// What is one vector wide, or less, is `count`.
template <int kVectors, class Count>
struct Width {
  Count count;
  static constexpr int vectors = kVectors;
};

// A column's elements, kept or read anew: a vector of `arrays` interleaved ones.
template <class From, bool kKeeps, int kArrays, class W>
struct Columns {
  typedef Acc<From> T;
  typedef Vec<T> V;
  const From* from;
  int64_t step;
  T* kept;  // [n, arrays, vectors, lanes]
  W width;
  PF_INLINE V read(const Columns& c, int64_t i, int v) {
    return load_part(c.from + i * c.step + v * kLanes<T>, c.width.count);
  }
  PF_INLINE T* place(const Columns& c, int64_t i, int v) { return c.kept + (i * kArrays * W::vectors + v) * kLanes<T>; }
  PF_INLINE V first(const Columns& c, int64_t i, int v) {
    V x = read(c, i, v);
    if (kKeeps) store(place(c, i, v), x);
    return x;
  }
  PF_INLINE V again(const Columns& c, int64_t i, int v) { return kKeeps ? load(place(c, i, v)) : read(c, i, v); }
};

template <class From, class To, bool kLog, bool kKeeps, class W>
PF_INLINE void softmax_fwd_block(const From* x, int64_t step, To* y, int64_t n, int64_t inner, Acc<From> sign,
                                 Acc<From>* kept, W width, bool is_streamed) {
  typedef Acc<From> T;
  typedef Vec<T> V;
  typedef Columns<From, kKeeps, 1, W> C;
  constexpr int kVectors = W::vectors;
  const C of_x = {x, step, kept, width};
  const V signs = splat<V>(sign);
  V top[kVectors], sum[kVectors], last[kVectors];
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) top[v] = splat<V>(kLowest<T>), sum[v] = V{};
  for (int64_t i = 0; i < n; i++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) top[v] = max_fast(C::first(of_x, i, v) * signs, top[v]);
  }
  for (int64_t i0 = 0; i0 < n; i0 += kChunk) {
    V part[kVectors] = {};
    for (int64_t i = i0; i < min_of(n, i0 + kChunk); i++) {
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) {
        V e = exp(fma(C::again(of_x, i, v), signs, -top[v]));
        part[v] += e;
        if (kKeeps && !kLog) store(C::place(of_x, i, v), e);
      }
    }
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) sum[v] += part[v];
  }
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) last[v] = kLog ? log(sum[v]) : constant<V>(1) / sum[v];
  for (int64_t i = 0; i < n; i++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) {
      V value = C::again(of_x, i, v);
      if (kLog || !kKeeps) value = fma(value, signs, -top[v]);
      if (!kLog && !kKeeps) value = exp(value);
      store_output(y + i * inner + v * kLanes<T>, kLog ? value - last[v] : value * last[v], width.count, is_streamed);
    }
  }
}

template <class From, class To, bool kLog, bool kKeeps, class W>
PF_INLINE void softmax_bwd_block(const From* dy, int64_t dy_step, const From* y, int64_t y_step, To* dx, int64_t n,
                                 int64_t inner, Acc<From> sign, Acc<From>* kept, W width, bool is_streamed) {
  typedef Acc<From> T;
  typedef Vec<T> V;
  typedef Columns<From, kKeeps, 2, W> C;
  constexpr int kVectors = W::vectors;
  const C of_dy = {dy, dy_step, kept, width}, of_y = {y, y_step, kept + kVectors * kLanes<T>, width};
  const V signs = splat<V>(sign);
  V sum[kVectors] = {};
  for (int64_t i0 = 0; i0 < n; i0 += kChunk) {
    V part[kVectors] = {};
    for (int64_t i = i0; i < min_of(n, i0 + kChunk); i++) {
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) {
        V d = C::first(of_dy, i, v), value = C::first(of_y, i, v);
        part[v] = kLog ? part[v] + d : fma(d, value, part[v]);
      }
    }
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) sum[v] += part[v];
  }
  for (int64_t i = 0; i < n; i++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) {
      V d = C::again(of_dy, i, v), value = C::again(of_y, i, v);
      V result = kLog ? d - exp(value) * sum[v] : value * signs * (d - sum[v]);
      store_output(dx + i * inner + v * kLanes<T>, result, width.count, is_streamed);
    }
  }
}

// body(outer, first column, width, kept) for blocks of columns; `arrays` of each are kept, where they fit.
template <class T, class Body>
void for_column_blocks(int64_t outer, int64_t n, int64_t inner, int arrays, void* workspace, int threads, bool past,
                       Body body) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t of_vector = n * arrays * PF_VECTOR_BYTES;  // bytes
  const bool one_fits = of_vector <= kSoftmaxKept, all_fit = of_vector * kBlock <= kSoftmaxKept;
  const int64_t columns = all_fit || !one_fits ? kBlock * lanes : lanes, blocks = ceil_div(inner, columns);
  parallel_ranges(outer * blocks, max_of(1, kElementwiseGrain / (n * columns)), threads,
                  [&](int64_t begin, int64_t end) {
                    T* kept = (T*)((char*)workspace + omp_get_thread_num() * kSoftmaxKept);
                    for (int64_t b = begin; b < end; b++) {
                      int64_t first = b % blocks * columns;
                      const int64_t o = b / blocks, stop = min_of(inner, first + columns);
                      for (; first + kBlock * lanes <= stop; first += kBlock * lanes)
                        body(o, first, Width<kBlock, WholeVector>{}, kept, one_fits);
                      for (; first + lanes <= stop; first += lanes)
                        body(o, first, Width<1, WholeVector>{}, kept, one_fits);
                      if (first < stop) body(o, first, Width<1, int64_t>{stop - first}, kept, one_fits);
                    }
                    if (past) stream_fence();
                  });
}

template <class From, class To, bool kLog>
void softmax_fwd_columns(const SoftmaxFwd& p, int threads) {
  typedef Acc<From> T;
  const T sign = p.kind == SoftmaxKind::softmin ? -1 : 1;
  const int64_t elements = p.outer * p.n * p.inner;
  const bool past = is_streamed<To>(p.y, elements * (int64_t)(sizeof(From) + sizeof(To)), p.inner);
  for_column_blocks<T>(
      p.outer, p.n, p.inner, 1, p.workspace, threads, past,
      [&](int64_t outer, int64_t first, auto width, T* kept, bool keeps) {
        const From* x = (const From*)p.x + outer * p.x_outer_stride + first;
        To* y = (To*)p.y + outer * p.n * p.inner + first;
        if (keeps)
          softmax_fwd_block<From, To, kLog, true>(x, p.x_step, y, p.n, p.inner, sign, kept, width, past);
        else
          softmax_fwd_block<From, To, kLog, false>(x, p.x_step, y, p.n, p.inner, sign, kept, width, past);
      });
}

template <class From, class To, bool kLog>
void softmax_bwd_columns(const SoftmaxBwd& p, int threads) {
  typedef Acc<From> T;
  const T sign = p.kind == SoftmaxKind::softmin ? -1 : 1;
  const int64_t elements = p.outer * p.n * p.inner;
  const bool past = is_streamed<To>(p.dx, elements * (int64_t)(2 * sizeof(From) + sizeof(To)), p.inner);
  for_column_blocks<T>(p.outer, p.n, p.inner, 2, p.workspace, threads, past,
                       [&](int64_t outer, int64_t first, auto width, T* kept, bool keeps) {
                         const From* dy = (const From*)p.dy + outer * p.dy_outer_stride + first;
                         const From* y = (const From*)p.y + outer * p.y_outer_stride + first;
                         To* dx = (To*)p.dx + outer * p.n * p.inner + first;
                         if (keeps)
                           softmax_bwd_block<From, To, kLog, true>(dy, p.dy_step, y, p.y_step, dx, p.n, p.inner, sign,
                                                                   kept, width, past);
                         else
                           softmax_bwd_block<From, To, kLog, false>(dy, p.dy_step, y, p.y_step, dx, p.n, p.inner, sign,
                                                                    kept, width, past);
                       });
}

}  // namespace

}  // namespace PF_ISA::softmax
