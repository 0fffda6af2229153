// Matrix products of one attention tile, and the transpositions around them.
//
// Queries lie in the lanes: S^T = K Q^T and O^T = V^T P^T. So K and V are read in place, one broadcast an element,
// whatever their strides; maxima, sums and rescaling go lane by lane; only Q and the output are transposed, once a
// query block.

namespace {

// The register tile: kTileRows x kTileVectors accumulators, their operands, and no spill.
// AVX-512 has 32 registers, the others 16; 8 chains hide the latency of two FMA units on both.
#if PF_VECTOR_BYTES == 64
constexpr int kTileRows = 8, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif
constexpr int kMaxDepth = 128;  // float chains are cut here: as accurate as torch, at no cost

template <class A>
constexpr int kQueries = kTileVectors * kLanes<A>;  // queries of a block

// Keys of a block: K, V, scores and output of a block fit the second-level cache, the operands of a product the first.
constexpr int64_t kKeys = 128;

// ---- transposition --------------------------------------------------------------------------------------------------
template <class V>
using Lanes = typename VecOf<Element<V>>::mask;

template <class V>
PF_INLINE Lanes<V> lane_index() {
  Lanes<V> index;
  for (int i = 0; i < kLanes<Element<V>>; i++) index[i] = i;
  return index;
}

// rows[i][j] <-> rows[j][i], by exchanging ever larger blocks.
template <class V>
PF_INLINE void transpose(V* rows) {
  constexpr int n = kLanes<Element<V>>;
  const Lanes<V> lane = lane_index<V>();
  PF_UNROLL
  for (int step = 1; step < n; step *= 2) {
    Lanes<V> is_odd = (lane & step) != 0;
    Lanes<V> low = is_odd ? lane + (n - step) : lane, high = is_odd ? lane + n : lane + step;
    PF_UNROLL
    for (int i = 0; i < n; i++) {
      if (i & step) continue;
      V a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + step] = __builtin_shuffle(a, b, high);
    }
  }
}

template <class V>
__attribute__((noinline)) void transpose_in_memory(V* rows) {
  transpose(rows);
}

template <class S>
__attribute__((noinline)) Vec<Acc<S>> gather(const S* p, int64_t stride, int64_t count) {
  Acc<S> buffer[kLanes<Acc<S>>] __attribute__((aligned(64)));
#pragma GCC unroll 1
  for (int i = 0; i < kLanes<Acc<S>>; i++) buffer[i] = i < count ? get(p + i * stride) : Acc<S>(0);
  return *(const Vec<Acc<S>>*)buffer;
}
// Elements 0 .. count - 1 of a strided row, zeros behind them.
template <class S>
PF_INLINE Vec<Acc<S>> load_strided(const S* p, int64_t stride, int64_t count) {
  return stride == 1 && count >= kLanes<Acc<S>> ? load(p) : gather(p, stride, count);
}

// to[col][row] = scale * from(row)[col] for `queries` rows in lanes, zero in the lanes from `count` on.
// from(row) is the address of a row, read with `col_stride`.
template <class S, class A, class Row>
PF_INLINE void pack_transposed(Row from, int64_t col_stride, int64_t count, int64_t cols, A scale, A* to) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
  for (int first = 0; first < queries; first += n) {
    for (int64_t col = 0; col < cols; col += n) {
      V rows[n];
      if (first + n <= count && col + n <= cols && col_stride == 1) {  // in registers
        PF_UNROLL
        for (int i = 0; i < n; i++) rows[i] = load(from(first + i) + col);
        transpose(rows);
        PF_UNROLL
        for (int i = 0; i < n; i++) store(to + (col + i) * queries + first, rows[i] * scale);
        continue;
      }
      for (int i = 0; i < n; i++)
        rows[i] = first + i < count ? load_strided<S>(from(first + i) + col * col_stride, col_stride, cols - col) : V{};
      transpose_in_memory(rows);
      for (int i = 0; i < n; i++)
        if (col + i < cols) store(to + (col + i) * queries + first, rows[i] * scale);
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

// Rows of a matrix in the arithmetic type with adjacent columns: where they lie, when they lie so, else copied to
// `buffer`, whose rows are `width` apart and zero from `cols` on.
template <class S, class A>
PF_INLINE const A* rows_of(const S* from, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t cols,
                           int64_t width, A* buffer, int64_t* stride) {
  if constexpr (sizeof(S) == sizeof(A)) {
    if (col_stride == 1 && width == cols) {
      *stride = row_stride;
      return (const A*)from;
    }
  }
  constexpr int n = kLanes<A>;
  *stride = width;
  for (int64_t row = 0; row < rows; row++)
    for (int64_t col = 0; col < width; col += n)
      store_n(buffer + row * width + col,
              load_strided<S>(from + row * row_stride + col * col_stride, col_stride, max_of(0, cols - col)),
              width - col);
  return buffer;
}

// ---- products -------------------------------------------------------------------------------------------------------
enum Into { kStore, kAdd, kScaleAdd };   // c = , c += , c = alpha c +
enum Order { kRowMajor, kColumnMajor };  // of a: element (m, k) at a[m * stride + k], or at a[m + k * stride]

// c[m][n] (Into) sum_k a(m, k) b[k][n]. The sum starts from zero whatever is in c: a running total over thousands of
// terms would lose digits.
template <class A, Into kInto, Order kOrder, int kRows, int kVectors>
__attribute__((noinline)) void tile_product(const A* a, int64_t a_stride, const A* b, int64_t b_stride, int64_t depth,
                                            A* c, int64_t c_stride, const Vec<A>* alpha) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  V acc[kRows][kVectors];
  PF_UNROLL
  for (int i = 0; i < kRows; i++) {
    PF_UNROLL
    for (int j = 0; j < kVectors; j++) acc[i][j] = V{};
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; k++) {
    V row[kVectors];
    PF_UNROLL
    for (int j = 0; j < kVectors; j++) row[j] = load(b + k * b_stride + j * n);
    PF_UNROLL
    for (int i = 0; i < kRows; i++) {
      V x = splat<V>(kOrder == kRowMajor ? a[i * a_stride + k] : a[i + k * a_stride]);
      PF_UNROLL
      for (int j = 0; j < kVectors; j++) acc[i][j] = fma(x, row[j], acc[i][j]);
    }
  }
  PF_UNROLL
  for (int i = 0; i < kRows; i++) {
    PF_UNROLL
    for (int j = 0; j < kVectors; j++) {
      A* to = c + i * c_stride + j * n;
      if (kInto == kStore) store(to, acc[i][j]);
      if (kInto == kAdd) store(to, load(to) + acc[i][j]);
      if (kInto == kScaleAdd) store(to, fma(load(to), alpha[j], acc[i][j]));
    }
  }
}

template <class A, Into kInto, Order kOrder, int kVectors>
PF_INLINE void product_columns(int64_t rows, int64_t depth, const A* a, int64_t a_stride, const A* b, int64_t b_stride,
                               A* c, int64_t c_stride, const Vec<A>* alpha) {
  const int64_t a_step = kOrder == kRowMajor ? a_stride : 1;
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    tile_product<A, kInto, kOrder, kTileRows, kVectors>(a + m * a_step, a_stride, b, b_stride, depth, c + m * c_stride,
                                                        c_stride, alpha);
  if (kTileRows > 4 && rows - m >= 4) {
    tile_product<A, kInto, kOrder, 4, kVectors>(a + m * a_step, a_stride, b, b_stride, depth, c + m * c_stride,
                                                c_stride, alpha);
    m += 4;
  }
  for (; m < rows; m++)
    tile_product<A, kInto, kOrder, 1, kVectors>(a + m * a_step, a_stride, b, b_stride, depth, c + m * c_stride,
                                                c_stride, alpha);
}

// c [rows x vectors] (Into) a [rows x depth] b [depth x vectors]; columns of b and c are adjacent.
template <class A, Into kInto, Order kOrder>
PF_INLINE void product(int64_t rows, int64_t vectors, int64_t depth, const A* a, int64_t a_stride, const A* b,
                       int64_t b_stride, A* c, int64_t c_stride, const Vec<A>* alpha = nullptr) {
  constexpr int n = kLanes<A>;
  int64_t j = 0;
  for (; j + kTileVectors <= vectors; j += kTileVectors)
    product_columns<A, kInto, kOrder, kTileVectors>(rows, depth, a, a_stride, b + j * n, b_stride, c + j * n, c_stride,
                                                    alpha + j);
  for (; j < vectors; j++)
    product_columns<A, kInto, kOrder, 1>(rows, depth, a, a_stride, b + j * n, b_stride, c + j * n, c_stride, alpha + j);
}

// scores^T [keys x queries] = k [keys x depth] q^T [depth x queries], in chains of at most kMaxDepth terms.
template <class A>
PF_INLINE void product_scores(int64_t keys, int64_t depth, const A* k, int64_t k_stride, const A* q_t, A* scores) {
  constexpr int queries = kQueries<A>;
  product<A, kStore, kRowMajor>(keys, kTileVectors, min_of(depth, kMaxDepth), k, k_stride, q_t, queries, scores,
                                queries);
  for (int64_t d = kMaxDepth; d < depth; d += kMaxDepth)
    product<A, kAdd, kRowMajor>(keys, kTileVectors, min_of(depth - d, kMaxDepth), k + d, k_stride, q_t + d * queries,
                                queries, scores, queries);
}

// ---- exp -----------------------------------------------------------------------------------------------------------
// exp of differences from a maximum: NaN stays NaN, exp(0) is 1 exactly, and what would be subnormal is 0: on a masked
// tile the processor's slow path for subnormal results took a third of the time. [9e-8 relative]
PF_INLINE vf exp_difference(vf x) {
  vf clamped = max_fast(splat<vf>(-87.0f), x);
  vf n = round_even(clamped * 1.44269504088896f);
  vf r = fma(clamped, splat<vf>(1.44269504088896f), -n);
  vf p = horner(r, 1.0, 6.9314700365e-01, 2.4022242427e-01, 5.5507335812e-02, 9.6715129912e-03, 1.3264727313e-03);
  return select(x < splat<vf>(-87.0f), vf{}, scale_pow2(p, n));
}
PF_INLINE vd exp_difference(vd x) { return exp(x); }

// Bytes handed out from one block of memory, 64 at a time; with a null block it only counts.
struct Carver {
  char* at;
  int64_t used;
  template <class T>
  T* take(int64_t count) {
    T* here = (T*)(at + used);
    used += round_up(count * (int64_t)sizeof(T), 64);
    return here;
  }
};

}  // namespace
