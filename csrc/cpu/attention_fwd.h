// Attention forward: for a block of queries, one pass over the keys with a running maximum (Milakov & Gimelshein 2018;
// Rabe & Staats 2021; Dao et al. 2022, arXiv:2205.14135).

namespace {

// A thread's memory.
template <class A>
struct FwdScratch {
  A *q_t, *scores, *factors, *out_t, *k, *v;
  FwdScratch(Carver& from, int64_t E, int64_t Ev) {
    q_t = from.take<A>(E * kQueries<A>);
    scores = from.take<A>(kKeys * kQueries<A>);
    factors = from.take<A>(kKeys * kQueries<A>);
    out_t = from.take<A>(Ev * kQueries<A>);
    k = from.take<A>(kKeys * E);
    v = from.take<A>(kKeys * Ev);
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

// scores -> exp(scores - max), with max and sum brought up to date; alpha rescales what was summed before.
template <class A>
__attribute__((noinline)) void online_softmax(int64_t keys, A* scores, const A* factors, RowState<A>& state) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
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
  if (!factors) {
    for (int64_t key = 0; key < keys; key++) {
      PF_UNROLL
      for (int j = 0; j < kTileVectors; j++) {
        A* at = scores + key * queries + j * n;
        V p = exp_difference(load(at) - max[j]);
        sum[j] = sum[j] + p;
        store(at, p);
      }
    }
  } else {
    for (int64_t key = 0; key < keys; key++) {
      PF_UNROLL
      for (int j = 0; j < kTileVectors; j++) {
        A* at = scores + key * queries + j * n;
        V p = exp_difference(load(at) - max[j]);
        sum[j] = sum[j] + p;
        store(at, p * load(factors + key * queries + j * n));
      }
    }
  }
  PF_UNROLL
  for (int j = 0; j < kTileVectors; j++) state.sum[j] = fma(state.sum[j], state.alpha[j], sum[j]);
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

template <class S>
PF_INLINE void pack_queries(const Attention& p, const QueryBlock<Acc<S>>& rows, Acc<S>* q_t) {
  pack_transposed<S>([&](int64_t lane) { return at<S>(p.q, p.q_stride, rows.batch, rows.head[lane], rows.i[lane]); },
                     p.q_stride.dim[3], rows.count, p.E, (Acc<S>)p.scale, q_t);
}

template <class S>
void attend(const AttentionFwd& call, const QueryBlock<Acc<S>>& rows, int64_t kv_head,
            const FwdScratch<Acc<S>>& scratch) {
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
    int64_t keys = min_of(kKeys, range.end - first), k_stride, v_stride;
    const A* k = rows_of<S>(at<S>(p.k, p.k_stride, rows.batch, kv_head, first), p.k_stride.dim[2], p.k_stride.dim[3],
                            keys, p.E, p.E, scratch.k, &k_stride);
    const A* v = rows_of<S>(at<S>(p.v, p.v_stride, rows.batch, kv_head, first), p.v_stride.dim[2], p.v_stride.dim[3],
                            keys, p.Ev, p.Ev, scratch.v, &v_stride);
    product_scores<A>(keys, p.E, k, k_stride, scratch.q_t, scratch.scores);
    finish_scores<A>(p, rows, first, keys, scratch.scores, nullptr);
    if (p.dropout_p > 0) dropout_factors<A>(p, rows, first, keys, scratch.factors);
    online_softmax<A>(keys, scratch.scores, p.dropout_p > 0 ? scratch.factors : nullptr, state);
    product<A, kScaleAdd, kColumnMajor>(p.Ev, kTileVectors, keys, v, v_stride, scratch.scores, queries, scratch.out_t,
                                        queries, state.alpha);
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
  FwdScratch<A>(size, p.E, p.Ev);
  parallel_tasks(units * blocks, num_threads, [&](int64_t task, int thread) {
    int64_t unit = task / blocks, block = blocks - 1 - task % blocks;  // the last block of a causal head is the longest
    int64_t b = unit / (p.H / together), head = unit % (p.H / together) * together;
    Carver carver = {(char*)call.workspace + thread * size.used, 0};
    const FwdScratch<A> scratch(carver, p.E, p.Ev);
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
    constexpr int64_t lanes = kQueries<Acc<S>>;
    // Keys that do not fill vectors are read element by element there, once a row (8 rows of 8 columns: 3.5x slower).
    const int64_t few = call.of.E % kLanes<Acc<S>> ? 2 : min_of(kFewRows, lanes);
    if (call.of.L * (call.of.H / call.of.Hkv) <= few) return attention_decode_typed<S>(call, num_threads);
    for_query_blocks<S>(call, num_threads, [&](auto& queries, int64_t kv_head, auto& scratch) {
      attend<S>(call, queries, kv_head, scratch);
    });
  });
}
