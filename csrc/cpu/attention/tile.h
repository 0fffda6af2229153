// Matrix products of one attention tile.
//
// Queries lie in the lanes: S^T = K Q^T and O^T = V^T P^T. So K and V are read in place, one broadcast an element,
// whatever their strides; maxima, sums and rescaling go lane by lane; only Q and the output are transposed, once a
// query block (pack.h).
//
// T is what is multiplied (simd/operand.h), A the type of its sums. Of pairs of bf16, K is still read in place, two
// columns at a time; V is interleaved and the probabilities are rounded to pairs, so that the two belong to two keys.
#pragma once
#include "../../common/attention.h"
#include "../simd/math.h"
#include "../simd/register_tile.h"

namespace PF_ISA::attention {

namespace {

// The register tile: kTileRows x kTileVectors accumulators, their operands, and no spill.
// AVX-512 has 32 registers, the others 16; 8 chains hide the latency of two FMA units on both.
#if PF_VECTOR_BYTES == 64
constexpr int kTileRows = 8, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 2;
#endif
static_assert(kTileRows * kTileVectors + kTileVectors + 1 <= kRegisters, "sums, a row of b and an element of a");
static_assert(kTileRows % 2 == 0, "two keys make one row of pairs: see seen_of_block");
static_assert(kTileVectors % 2 == 0, "two vectors make one of pairs; one of random words serves two of double");
constexpr int kMaxDepth = 128;  // float chains are cut here: as accurate as torch, at no cost

template <class T>
constexpr int kQueries = kTileVectors * kLanes<T>;  // queries of a block

// Keys of a block: K, V, scores and output of a block fit the second-level cache, the operands of a product the first.
constexpr int64_t kKeys = 128;
static_assert(kKeys % 2 == 0, "two keys make one row of pairs");

// ---- products -------------------------------------------------------------------------------------------------------
enum Into { kStore, kScaled, kAdd, kScaleAdd };  // c = , c = alpha times , c += , c = alpha c +

// c[m][n] (Into) sum_k a(m, k) b[k][n]. The sum starts from zero whatever is in c: a running total over thousands of
// terms would lose digits.
template <class T, Into kInto, Order kOrder, int kRows, int kVectors>
__attribute__((noinline)) void tile_product(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t depth,
                                            Acc<T>* c, int64_t c_stride, const Vec<Acc<T>>* alpha) {
  typedef Acc<T> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<T>;
  V acc[kRows][kVectors];
  multiply_tile(acc, depth, RowFactors<T, kOrder>{a, a_stride}, ColumnFactors<T>{b, b_stride});
  PF_UNROLL
  for (int i = 0; i < kRows; i++) {
    PF_UNROLL
    for (int j = 0; j < kVectors; j++) {
      A* to = c + i * c_stride + j * n;
      if (kInto == kStore) store(to, acc[i][j]);
      if (kInto == kScaled) store(to, acc[i][j] * alpha[j]);
      if (kInto == kAdd) store(to, load(to) + acc[i][j]);
      if (kInto == kScaleAdd) store(to, fma(load(to), alpha[j], acc[i][j]));
    }
  }
}

template <class T, Into kInto, Order kOrder, int kVectors>
PF_INLINE void product_columns(int64_t rows, int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                               Acc<T>* c, int64_t c_stride, const Vec<Acc<T>>* alpha) {
  const int64_t a_step = kOrder == kRowMajor ? a_stride : 1;
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows)
    tile_product<T, kInto, kOrder, kTileRows, kVectors>(a + m * a_step, a_stride, b, b_stride, depth, c + m * c_stride,
                                                        c_stride, alpha);
  if (kTileRows > 4 && rows - m >= 4) {
    tile_product<T, kInto, kOrder, 4, kVectors>(a + m * a_step, a_stride, b, b_stride, depth, c + m * c_stride,
                                                c_stride, alpha);
    m += 4;
  }
  for (; m < rows; m++)
    tile_product<T, kInto, kOrder, 1, kVectors>(a + m * a_step, a_stride, b, b_stride, depth, c + m * c_stride,
                                                c_stride, alpha);
}

// Where the rows of a matrix begin, and how far they are apart.
template <class T>
struct Rows {
  const T* at;
  int64_t stride;
};

// c [rows x vectors] (Into) a [rows x depth] b [depth x vectors]; columns of b and c are adjacent.
template <class T, Into kInto, Order kOrder>
PF_INLINE void product(int64_t rows, int64_t vectors, int64_t depth, Rows<T> a, Rows<T> b, Acc<T>* c, int64_t c_stride,
                       const Vec<Acc<T>>* alpha = nullptr) {
  constexpr int n = kLanes<T>;
  int64_t j = 0;
  for (; j + kTileVectors <= vectors; j += kTileVectors)
    product_columns<T, kInto, kOrder, kTileVectors>(rows, depth, a.at, a.stride, b.at + j * n, b.stride, c + j * n,
                                                    c_stride, alpha + j);
  for (; j < vectors; j++)
    product_columns<T, kInto, kOrder, 1>(rows, depth, a.at, a.stride, b.at + j * n, b.stride, c + j * n, c_stride,
                                         alpha + j);
}

// scores^T [keys x queries] = scale k [keys x depth] q^T [depth x queries], in chains of at most kMaxDepth terms. The
// scale is in q^T already, but for pairs: there it would be rounded. Lanes from `vectors` on keep what they hold.
template <class T>
PF_INLINE void product_scores(int64_t keys, int64_t depth, Rows<T> k, const T* q_t, Acc<T>* scores, Acc<T> scale,
                              int64_t vectors = kTileVectors) {
  constexpr int queries = kQueries<T>;
  if constexpr (kTerms<T> > 1) {  // a long chain costs less than bf16 does
    Vec<Acc<T>> alpha[kTileVectors];
    for (Vec<Acc<T>>& one : alpha) one = splat<Vec<Acc<T>>>(scale);
    product<T, kScaled, kRowMajor>(keys, vectors, ceil_div(depth, kTerms<T>), k, {q_t, queries}, scores, queries,
                                   alpha);
    return;
  }
  product<T, kStore, kRowMajor>(keys, vectors, min_of(depth, kMaxDepth), k, {q_t, queries}, scores, queries);
  for (int64_t d = kMaxDepth; d < depth; d += kMaxDepth)
    product<T, kAdd, kRowMajor>(keys, vectors, min_of(depth - d, kMaxDepth), {k.at + d, k.stride},
                                {q_t + d * queries, queries}, scores, queries);
}

// ---- exp -----------------------------------------------------------------------------------------------------------
// exp of differences from a maximum: NaN stays NaN, exp(0) is 1 exactly, and what would be subnormal is 0: on a masked
// tile the processor's slow path for subnormal results took a third of the time. [9e-8 relative; 3e-6 for pairs]
template <class T>
PF_INLINE vf exp_difference(vf x) {
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to an integer, in its lowest bits
  vf shifted = fma(x, splat<vf>(1.44269504088896f), splat<vf>(round)), n = shifted - round;
  vf r = fma(x, splat<vf>(1.44269504088896f), -n);
  if constexpr (kTerms<T> > 1) {
    vf p = horner(r, 1.0, 6.9312419332e-01, 2.4024098612e-01, 5.5906425414e-02, 9.5828532451e-03);
    vf scaled = (vf)((vi)p + ((vi)shifted << 23));  // the lowest bits of bf16's NaN are 0
    return select(x < splat<vf>(-87.0f), vf{}, scaled);
  }
  vf p = horner(r, 1.0, 6.9314697760e-01, 2.4022242084e-01, 5.5507337438e-02, 9.6715127287e-03, 1.3264727303e-03);
  vf scaled = (vf)((vi)p + ((vi)shifted << 23));
  return select(x >= splat<vf>(-87.0f), scaled, max_fast(vf{}, x));  // 0, or x where that is NaN
}
template <class T>
PF_INLINE vd exp_difference(vd x) {
  return exp(x);
}

}  // namespace

}  // namespace PF_ISA::attention
