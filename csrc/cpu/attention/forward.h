// Attention forward: for a block of queries, one pass over the keys with a running maximum (Milakov & Gimelshein 2018;
// Rabe & Staats 2021; Dao et al. 2022, arXiv:2205.14135).
#pragma once
#include "../core/memory.h"
#include "../core/parallel.h"
#include "scores.h"

namespace PF_ISA::attention {

namespace {

// Query blocks that a task takes together: where K and V are copied for the products, they share the copy.
template <class S>
constexpr int kTogether = sizeof(S) == sizeof(Operand<S>) ? 1 : 4;

// A thread's memory.
template <class S>
struct FwdScratch {
  typedef Operand<S> T;
  typedef Acc<S> A;
  T *q_t[kTogether<S>], *k, *v;
  A *out_t[kTogether<S>], *scores, *factors;
  FwdScratch(Carver& from, int64_t E, int64_t Ev) {
    for (T*& block : q_t) block = from.take<T>(ceil_div(E, kTerms<T>) * kQueries<T>);
    for (A*& block : out_t) block = from.take<A>(Ev * kQueries<T>);
    scores = from.take<A>(kKeys * kQueries<T>);
    factors = from.take<A>(kKeys * kQueries<T>);
    k = from.take<T>(kKeys * ceil_div(E, kTerms<T>));
    v = from.take<T>(kKeys / kTerms<T> * Ev);
  }
};

// Running statistics of a block's rows.
template <class A>
struct RowState {
  Vec<A> max[kTileVectors], sum[kTileVectors], alpha[kTileVectors];
  void reset() {
    for (int j = 0; j < kTileVectors; j++) max[j] = splat<Vec<A>>(kMinusInfinity<A>), sum[j] = Vec<A>{};
  }
};

// What exponents are taken against: a row without any score so far has -inf, and -inf - -inf would be NaN.
template <class V>
PF_INLINE V safe_maximum(V max) {
  return select(max == splat<V>(kMinusInfinity<Element<V>>), V{}, max);
}

// The row after the last of a tile: what joins the last row where their number is odd.
template <class T>
PF_INLINE void fill_terms(int64_t rows, Acc<T>* tile, Acc<T> value) {
  constexpr int queries = kQueries<T>;
  for (; rows % kTerms<T>; rows++)
    for (int i = 0; i < queries; i += kLanes<T>) store(tile + rows * queries + i, splat<Vec<Acc<T>>>(value));
}

// scores -> exp(scores - max), times factors, as operands in their place; max and sum are brought up to date, and alpha
// rescales what was summed before.
template <class T, bool kFactors>
__attribute__((noinline)) Rows<T> online_softmax(int64_t keys, Acc<T>* scores, Acc<T>* factors,
                                                 RowState<Acc<T>>& state) {
  typedef Acc<T> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>, terms = kTerms<T>;
  V max[kTileVectors], sum[kTileVectors];
  PF_UNROLL
  for (int j = 0; j < kTileVectors; j++) max[j] = state.max[j], sum[j] = V{};
  for (int64_t key = 0; key < keys; key++) {
    PF_UNROLL
    for (int j = 0; j < kTileVectors; j++) max[j] = max_fast(load(scores + key * queries + j * n), max[j]);
  }
  PF_UNROLL
  for (int j = 0; j < kTileVectors; j++) {
    V base = safe_maximum(max[j]);
    state.alpha[j] = exp_difference<T>(state.max[j] - base);
    state.max[j] = max[j];
    max[j] = base;
  }
  fill_terms<T>(keys, scores, kMinusInfinity<A>);
  if (kFactors) fill_terms<T>(keys, factors, A(0));
  for (int64_t key = 0; key < keys; key += terms) {
    PF_UNROLL
    for (int j = 0; j < kTileVectors; j++) {
      V p[terms];
      PF_UNROLL
      for (int i = 0; i < terms; i++) {
        const int64_t at = (key + i) * queries + j * n;
        p[i] = exp_difference<T>(load(scores + at) - max[j]);
        sum[j] = sum[j] + p[i];
        if (kFactors) p[i] = p[i] * load(factors + at);
      }
      store((T*)scores + key / terms * queries + j * n, join_terms(p));
    }
  }
  PF_UNROLL
  for (int j = 0; j < kTileVectors; j++) state.sum[j] = fma(state.sum[j], state.alpha[j], sum[j]);
  return {(const T*)scores, queries};
}
template <class T>
PF_INLINE Rows<T> online_softmax(int64_t keys, Acc<T>* scores, Acc<T>* factors, RowState<Acc<T>>& state) {
  return factors ? online_softmax<T, true>(keys, scores, factors, state)
                 : online_softmax<T, false>(keys, scores, factors, state);
}

PF_INLINE vf log_lanes(vf x) {  // once a row: the C library's will do
  for (int i = 0; i < kF32; i++) x[i] = (float)::log((double)x[i]);
  return x;
}
PF_INLINE vd log_lanes(vd x) {
  for (int i = 0; i < kLanes<double>; i++) x[i] = ::log(x[i]);
  return x;
}

// max + log(sum) of each row as lse, and in lse_low, if that is wanted, what its rounding left out: the logarithm
// vanishes beside a maximum of -1e9, as a mask makes it.
template <class A>
struct LogSum {
  Vec<A> lse[kTileVectors], low[kTileVectors];
  explicit LogSum(const RowState<A>& state) {
    for (int j = 0; j < kTileVectors; j++) {
      const Vec<A> max = safe_maximum(state.max[j]), log_sum = log_lanes(state.sum[j]);
      lse[j] = max + log_sum;
      low[j] = (max - lse[j]) + log_sum;
      low[j] = select(low[j] == low[j], low[j], Vec<A>{});  // of a row without any key
    }
  }
  void store(const AttentionFwd& call, const QueryBlock<A>& rows) const {
    for (int lane = 0; lane < rows.count; lane++) {
      const int64_t row = (rows.batch * call.of.H + rows.head[lane]) * call.of.L + rows.i[lane];
      ((A*)call.lse)[row] = lse[lane / kLanes<A>][lane % kLanes<A>];
      if (call.lse_low) ((A*)call.lse_low)[row] = low[lane / kLanes<A>][lane % kLanes<A>];
    }
  }
};

template <class S>
PF_INLINE const S* at(const void* base, const Strides4& stride, int64_t b, int64_t h, int64_t row) {
  return (const S*)base + b * stride.dim[0] + h * stride.dim[1] + row * stride.dim[2];
}

template <class S, class T>
PF_INLINE void pack_queries(const Attention& p, const QueryBlock<Acc<S>>& rows, T* q_t) {
  pack_transposed<S>([&](int64_t lane) { return at<S>(p.q, p.q_stride, rows.batch, rows.head[lane], rows.i[lane]); },
                     p.q_stride.dim[3], rows.count, p.E, (Acc<S>)p.scale, q_t);
}

// `rows` rows of a head from `first` on as operands, see rows_of and joined_rows_of.
template <class S, class T>
PF_INLINE Rows<T> rows_at(const void* base, const Strides4& stride, int64_t b, int64_t h, int64_t first, int64_t rows,
                          int64_t cols, T* buffer) {
  return rows_of<T>(at<S>(base, stride, b, h, first), stride.dim[2], stride.dim[3], rows, cols, cols, buffer);
}
template <class S, class T>
PF_INLINE Rows<T> joined_rows_at(const void* base, const Strides4& stride, int64_t b, int64_t h, int64_t first,
                                 int64_t rows, int64_t cols, int64_t width, T* buffer) {
  return joined_rows_of<T>(at<S>(base, stride, b, h, first), stride.dim[2], stride.dim[3], rows, cols, width, buffer);
}

// Keys [first, first + keys) for one block of queries.
template <class S>
PF_INLINE void attend_tile(const Attention& p, const QueryBlock<Acc<S>>& rows, int64_t first, int64_t keys,
                           Rows<Operand<S>> k, Rows<Operand<S>> v, const Operand<S>* q_t, Acc<S>* out_t,
                           RowState<Acc<S>>& state, const FwdScratch<S>& scratch) {
  typedef Operand<S> T;
  typedef Acc<S> A;
  const int64_t vectors = ceil_div(rows.count, kLanes<A>);  // of few rows some lanes stay idle
  product_scores(keys, p.E, k, q_t, scratch.scores, (A)p.scale, vectors);
  finish_scores<A>(p, rows, first, keys, scratch.scores, nullptr);
  if (p.keep_scale != 1) dropout_factors<A>(p, rows, first, keys, scratch.factors);
  Rows<T> probs = online_softmax<T>(keys, scratch.scores, p.keep_scale != 1 ? scratch.factors : nullptr, state);
  product<T, kScaleAdd, kColumnMajor>(p.Ev, vectors, ceil_div(keys, kTerms<T>), v, probs, out_t, kQueries<A>,
                                      state.alpha);
}

// out and lse of one block of queries.
template <class S>
void finish_rows(const AttentionFwd& call, const QueryBlock<Acc<S>>& rows, const Acc<S>* out_t,
                 RowState<Acc<S>>& state) {
  typedef Acc<S> A;
  typedef Vec<A> V;
  const Attention& p = call.of;
  LogSum<A>(state).store(call, rows);
  for (int j = 0; j < kTileVectors; j++)
    state.sum[j] = select(state.sum[j] == V{}, V{}, splat<V>(1) / state.sum[j]);  // no key at all: zeros
  unpack_transposed<S>(out_t, rows.count, p.Ev, state.sum, [&](int64_t lane) {
    return at<S>(call.out, call.out_stride, rows.batch, rows.head[lane], rows.i[lane]);
  });
}

// Up to kTogether blocks. Keys are cut at multiples of kKeys, so that a block's result does not depend on the others.
template <class S>
void attend(const AttentionFwd& call, const QueryBlock<Acc<S>>* blocks, int count, int64_t kv_head,
            const FwdScratch<S>& scratch) {
  typedef Operand<S> T;
  typedef Acc<S> A;
  const Attention& p = call.of;
  constexpr int terms = kTerms<T>;
  RowState<A> state[kTogether<S>];
  KeyRange range[kTogether<S>], all = {p.S, 0};
  for (int i = 0; i < count; i++) {
    pack_queries<S>(p, blocks[i], scratch.q_t[i]);
    memset((void*)scratch.out_t[i], 0, p.Ev * kQueries<A> * sizeof(A));
    state[i].reset();
    range[i] = visible_keys(p, blocks[i]);
    range[i].begin -= range[i].begin % terms;
    all = {min_of(all.begin, range[i].begin), max_of(all.end, range[i].end)};
  }
  for (int64_t begin = all.begin, end; begin < all.end; begin = end) {
    end = min_of(all.end, (begin / kKeys + 1) * kKeys);
    Rows<T> k = rows_at<S>(p.k, p.k_stride, blocks->batch, kv_head, begin, end - begin, p.E, scratch.k);
    Rows<T> v = joined_rows_at<S>(p.v, p.v_stride, blocks->batch, kv_head, begin, end - begin, p.Ev, p.Ev, scratch.v);
    for (int i = 0; i < count; i++) {
      const int64_t first = max_of(begin, range[i].begin), keys = min_of(end, range[i].end) - first;
      if (keys <= 0) continue;
      attend_tile<S>(p, blocks[i], first, keys, {k.at + (first - begin) * k.stride, k.stride},
                     {v.at + (first - begin) / terms * v.stride, v.stride}, scratch.q_t[i], scratch.out_t[i], state[i],
                     scratch);
    }
  }
  for (int i = 0; i < count; i++) finish_rows<S>(call, blocks[i], scratch.out_t[i], state[i]);
}

// body(blocks, count, kv_head, scratch) for all blocks of queries, in parallel; count is at most `together`.
template <class S, class Body>
PF_INLINE void for_query_blocks(const AttentionFwd& call, int num_threads, int together, Body body) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  // Fewer rows than lanes: the heads of a group share a block.
  const int64_t group = p.H / p.Hkv, heads = p.L < kQueries<A> ? group : 1, rows = p.L * heads;
  const int64_t units = p.B * p.H / heads, blocks = ceil_div(rows, kQueries<A>), tasks = ceil_div(blocks, together);
  Carver size = {nullptr, 0};
  FwdScratch<S>(size, p.E, p.Ev);
  parallel_tasks(units * tasks, num_threads, [&](int64_t task, int thread) {
    // The last blocks of a causal head are the longest.
    const int64_t unit = task / tasks, begin = (tasks - 1 - task % tasks) * together;
    const int64_t b = unit / (p.H / heads), head = unit % (p.H / heads) * heads;
    const int count = (int)min_of(together, blocks - begin);
    Carver carver = {(char*)call.workspace + thread * size.used, 0};
    const FwdScratch<S> scratch(carver, p.E, p.Ev);
    QueryBlock<A> queries[kTogether<S>];
    for (int i = 0; i < count; i++) {
      const int64_t first = (begin + i) * kQueries<A>;
      queries[i].set(b, head, first, min_of(kQueries<A>, rows - first), p.L);
    }
    body(queries, count, head / group, scratch);
  });
}

}  // namespace

}  // namespace PF_ISA::attention
