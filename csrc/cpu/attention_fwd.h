// Attention forward: for a block of queries, one pass over the keys with a running maximum (Milakov & Gimelshein 2018;
// Rabe & Staats 2021; Dao et al. 2022, arXiv:2205.14135).

namespace {

// A thread's memory.
template <class T>
struct FwdScratch {
  typedef Acc<T> A;
  T *q_t, *k, *v;
  A *scores, *factors, *out_t;
  FwdScratch(Carver& from, int64_t E, int64_t Ev) {
    q_t = from.take<T>(ceil_div(E, kTerms<T>) * kQueries<T>);
    scores = from.take<A>(kKeys * kQueries<T>);
    factors = from.take<A>(kKeys * kQueries<T>);
    out_t = from.take<A>(Ev * kQueries<T>);
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

// A row of a tile behind its last: what joins the last row where their number is odd.
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
    state.alpha[j] = exp_difference(state.max[j] - base);
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
        p[i] = exp_difference(load(scores + at) - max[j]);
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

template <class S>
void attend(const AttentionFwd& call, const QueryBlock<Acc<S>>& rows, int64_t kv_head,
            const FwdScratch<Operand<S>>& scratch) {
  typedef Operand<S> T;
  typedef Acc<S> A;
  typedef Vec<A> V;
  const Attention& p = call.of;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
  pack_queries<S>(p, rows, scratch.q_t);
  RowState<A> state;
  state.reset();
  for (int64_t i = 0; i < p.Ev * queries; i += n) store(scratch.out_t + i, V{});

  KeyRange range = visible_keys(p, rows);
  for (int64_t first = range.begin; first < range.end; first += kKeys) {
    const int64_t keys = min_of(kKeys, range.end - first);
    Rows<T> k = rows_at<S>(p.k, p.k_stride, rows.batch, kv_head, first, keys, p.E, scratch.k);
    product_scores(keys, p.E, k, scratch.q_t, scratch.scores, (A)p.scale);
    finish_scores<A>(p, rows, first, keys, scratch.scores, nullptr);
    if (p.dropout_p > 0) dropout_factors<A>(p, rows, first, keys, scratch.factors);
    Rows<T> probs = online_softmax<T>(keys, scratch.scores, p.dropout_p > 0 ? scratch.factors : nullptr, state);
    Rows<T> v = joined_rows_at<S>(p.v, p.v_stride, rows.batch, kv_head, first, keys, p.Ev, p.Ev, scratch.v);
    product<T, kScaleAdd, kColumnMajor>(p.Ev, kTileVectors, ceil_div(keys, kTerms<T>), v, probs, scratch.out_t, queries,
                                        state.alpha);
  }

  A lse[queries] __attribute__((aligned(64)));
  for (int j = 0; j < kTileVectors; j++) {
    *(V*)(lse + j * n) = safe_maximum(state.max[j]) + log_lanes(state.sum[j]);
    state.sum[j] = select(state.sum[j] == V{}, V{}, splat<V>(1) / state.sum[j]);  // no key at all: zeros
  }
  for (int lane = 0; lane < rows.count; lane++)
    ((A*)call.lse)[(rows.batch * p.H + rows.head[lane]) * p.L + rows.i[lane]] = lse[lane];
  unpack_transposed<S>(scratch.out_t, rows.count, p.Ev, state.sum, [&](int64_t lane) {
    return at<S>(call.out, call.out_stride, rows.batch, rows.head[lane], rows.i[lane]);
  });
}

// body(block, kv_head, scratch) for every block of queries, in parallel.
template <class S, class Body>
PF_INLINE void for_query_blocks(const AttentionFwd& call, int num_threads, Body body) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  // Fewer rows than lanes: the heads of a group share a block.
  int64_t group = p.H / p.Hkv, together = p.L < kQueries<A> ? group : 1;
  int64_t rows = p.L * together, units = p.B * p.H / together, blocks = ceil_div(rows, kQueries<A>);
  Carver size = {nullptr, 0};
  FwdScratch<Operand<S>>(size, p.E, p.Ev);
  parallel_tasks(units * blocks, num_threads, [&](int64_t task, int thread) {
    int64_t unit = task / blocks, block = blocks - 1 - task % blocks;  // the last block of a causal head is the longest
    int64_t b = unit / (p.H / together), head = unit % (p.H / together) * together;
    Carver carver = {(char*)call.workspace + thread * size.used, 0};
    const FwdScratch<Operand<S>> scratch(carver, p.E, p.Ev);
    QueryBlock<A> queries;
    queries.set(b, head, block * kQueries<A>, min_of(kQueries<A>, rows - block * kQueries<A>), p.L);
    body(queries, head / group, scratch);
  });
}

}  // namespace

#include "attention_decode.h"

void attention_fwd(const AttentionFwd& call, int num_threads) {
  for_dtype(call.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    // The rows of a group must fit the lanes of one block, which are 4 for double in the smallest vectors.
    constexpr int64_t lanes = kQueries<Acc<S>>, few = kFewRows < lanes ? kFewRows : lanes;
    if (call.of.L * (call.of.H / call.of.Hkv) <= few) return attention_decode_typed<S>(call, num_threads);
    for_query_blocks<S>(call, num_threads, [&](auto& queries, int64_t kv_head, auto& scratch) {
      attend<S>(call, queries, kv_head, scratch);
    });
  });
}
