// Attention backward (Dao et al. 2022, algorithm 4): five products a tile, in one pass.
//
// A key block collects its dk and dv while it walks over the queries; dq is summed over the key blocks in their order,
// in float32, transposed. Where there are fewer heads than threads the key blocks of one head run at the same time,
// each after its predecessor: block n adds to dq of a query block when block n - 1 has done so. So every thread works
// also with one head, no product is computed twice, and the result does not depend on the number of threads.
#pragma once
#include <sched.h>
#include "forward.h"

namespace PF_ISA::attention {

namespace {

constexpr int64_t kBwdKeys = 128;
static_assert(kBwdKeys % 2 == 0, "two keys make one row of pairs");

template <class A>
constexpr int64_t padded(int64_t cols) {
  return round_up(cols, kLanes<A>);
}

// A thread's memory.
template <class T>
struct BwdScratch {
  typedef Acc<T> A;
  T *q_t, *dout_t, *q_rows, *dout_rows, *k, *k_joined, *v, *dscores_joined;
  A *probs, *dscores, *factors, *slope, *dk, *dv;
  BwdScratch(Carver& from, int64_t E, int64_t Ev) {
    constexpr int queries = kQueries<T>, terms = kTerms<T>;
    q_t = from.take<T>(ceil_div(E, terms) * queries);
    dout_t = from.take<T>(ceil_div(Ev, terms) * queries);
    q_rows = from.take<T>(queries / terms * padded<A>(E));
    dout_rows = from.take<T>(queries / terms * padded<A>(Ev));
    k = from.take<T>(kBwdKeys * ceil_div(E, terms));
    k_joined = terms > 1 ? from.take<T>(kBwdKeys / terms * E) : k;
    v = from.take<T>(kBwdKeys * ceil_div(Ev, terms));
    probs = from.take<A>(kBwdKeys * queries);
    dscores = from.take<A>(kBwdKeys * queries);
    dscores_joined = terms > 1 ? from.take<T>(kBwdKeys / terms * queries) : (T*)dscores;
    factors = from.take<A>(kBwdKeys * queries);
    slope = from.take<A>(kBwdKeys * queries);
    dk = from.take<A>(kBwdKeys * max_of(padded<A>(E), queries));  // or a tile of dmask
    dv = from.take<A>(kBwdKeys * padded<A>(Ev));
  }
};

// The memory of a call: what all threads share, then a part for each.
template <class T>
struct BwdWorkspace {
  typedef Acc<T> A;
  A *dq_t, *delta;    // [B H, query blocks, E, queries]; [B H L]: rowsum(dout out) - dlse
  int64_t* progress;  // [B H, key blocks]: query blocks done
  char* threads;
  template <class Sizes>
  BwdWorkspace(Carver& from, const Sizes& p, int num_threads) {
    dq_t = from.take<A>(p.B * p.H * ceil_div(p.L, kQueries<A>) * p.E * kQueries<A>);
    delta = from.take<A>(p.B * p.H * p.L);
    progress = from.take<int64_t>(p.B * p.H * ceil_div(p.S, kBwdKeys));
    threads = from.take<char>(0);
    for (int thread = 0; thread < num_threads; thread++) BwdScratch<T>(from, p.E, p.Ev);
  }
  BwdScratch<T> scratch(int thread, int64_t E, int64_t Ev) const {
    Carver size = {nullptr, 0};
    BwdScratch<T>(size, E, Ev);
    Carver carver = {threads + thread * size.used, 0};
    return BwdScratch<T>(carver, E, Ev);
  }
};

// Row constants of a block: lse, its low part, and delta, from row `first` of all heads' on; rows without any key, and
// lanes without a row, get probability 0.
template <class A>
struct RowConstants {
  Vec<A> lse[kTileVectors], low[kTileVectors], delta[kTileVectors];
  bool has_low;
  RowConstants(const AttentionBwd& call, const A* deltas, int64_t first, int64_t count) : has_low(call.lse_low) {
    constexpr int n = kLanes<A>;
    for (int j = 0; j < kTileVectors; j++) {
      int64_t rest = max_of(0, count - j * n), at = first + j * n;
      Vec<A> value = load_n((const A*)call.lse + at, rest, kMinusInfinity<A>);
      lse[j] = select(value == splat<Vec<A>>(kMinusInfinity<A>), splat<Vec<A>>(-kMinusInfinity<A>), value);
      low[j] = has_low ? load_n((const A*)call.lse_low + at, rest) : Vec<A>{};
      delta[j] = load_n(deltas + at, rest);
    }
  }
};

// scores - lse, a pass of its own for those that have a low part to follow: exact where both are large and alike.
template <class A>
__attribute__((noinline)) void subtract_lse(int64_t keys, const RowConstants<A>& rows, A* scores) {
  for (int64_t key = 0; key < keys; key++) {
    PF_UNROLL
    for (int j = 0; j < kTileVectors; j++) {
      A* at = scores + key * kQueries<A> + j * kLanes<A>;
      store(at, load(at) - rows.lse[j]);
    }
  }
}

// scores, less lse where that has a low part, -> probabilities (with dropout), and dscores = p (factor dp - delta) in
// place of dp. As pairs, both along the queries, for a product over these, and dscores along the keys too, in `joined`.
template <class T, bool kDropout, bool kSlope>
__attribute__((noinline)) void softmax_bwd(int64_t keys, const RowConstants<Acc<T>>& rows, Acc<T>* scores, Acc<T>* dp,
                                           Acc<T>* factors, Acc<T>* slope, T* joined) {
  typedef Acc<T> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>, terms = kTerms<T>;
  fill_terms<T>(keys, scores, kMinusInfinity<A>);
  fill_terms<T>(keys, dp, A(0));
  if (kDropout) fill_terms<T>(keys, factors, A(0));
  if (kSlope) fill_terms<T>(keys, slope, A(0));
  V lse[kTileVectors], delta[kTileVectors];
  PF_UNROLL
  for (int j = 0; j < kTileVectors; j++) lse[j] = rows.has_low ? rows.low[j] : rows.lse[j], delta[j] = rows.delta[j];
  for (int64_t key = 0; key < keys; key += terms) {
    V p[terms][kTileVectors], ds[terms][kTileVectors];
    PF_UNROLL
    for (int i = 0; i < terms; i++) {
      PF_UNROLL
      for (int j = 0; j < kTileVectors; j++) {
        const int64_t at = (key + i) * queries + j * n;
        V d = load(dp + at), factor = kDropout ? load(factors + at) : splat<V>(1);
        p[i][j] = exp_difference<T>(load(scores + at) - lse[j]);
        ds[i][j] = p[i][j] * (kDropout ? fma(d, factor, -delta[j]) : d - delta[j]);
        if (kDropout) p[i][j] = p[i][j] * factor;
        if (kSlope) ds[i][j] = ds[i][j] * load(slope + at);
      }
    }
    PF_UNROLL
    for (int i = 0; i < terms; i++) {
      store_adjacent((T*)scores + (key + i) * (queries / terms), p[i]);
      store_adjacent((T*)dp + (key + i) * (queries / terms), ds[i]);
    }
    if constexpr (terms > 1) {
      PF_UNROLL
      for (int j = 0; j < kTileVectors; j++)
        store(joined + key / terms * queries + j * n, join_terms({ds[0][j], ds[1][j]}));
    }
  }
}

template <bool kOn>
struct Flag {
  static constexpr bool on = kOn;
};

// One tile: probabilities (with dropout) into scratch.probs, and into scratch.dscores the derivative of scale k q^T,
// both as operands; or that of the mask, which softcap does not touch, as numbers.
template <class S, bool kOfMask = false>
PF_INLINE void tile_bwd(const AttentionBwd& call, const QueryBlock<Acc<S>>& rows, const RowConstants<Acc<S>>& constants,
                        int64_t first, int64_t keys, Rows<Operand<S>> k, Rows<Operand<S>> v,
                        const BwdScratch<Operand<S>>& scratch) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  product_scores(keys, p.E, k, scratch.q_t, scratch.probs, (A)p.scale);
  finish_scores<A>(p, rows, first, keys, scratch.probs, kOfMask ? nullptr : scratch.slope);
  if (constants.has_low) subtract_lse(keys, constants, scratch.probs);
  if (call.of_weights) {
    auto row = [&](int64_t lane) {
      return at<S>(call.dout, call.dout_stride, rows.batch, rows.head[lane], rows.i[lane]) +
             first * call.dout_stride.dim[3];
    };
    pack_transposed<S>(row, call.dout_stride.dim[3], rows.count, keys, A(1), scratch.dscores);
  } else {
    product_scores(keys, p.Ev, v, scratch.dout_t, scratch.dscores, A(1));
  }
  auto softmax = [&](auto dropout, auto slope) {
    if constexpr (kOfMask)
      softmax_bwd<A, decltype(dropout)::on, false>(keys, constants, scratch.probs, scratch.dscores, scratch.factors,
                                                   nullptr, nullptr);
    else
      softmax_bwd<Operand<S>, decltype(dropout)::on, decltype(slope)::on>(
          keys, constants, scratch.probs, scratch.dscores, scratch.factors, scratch.slope, scratch.dscores_joined);
  };
  if (p.keep_scale != 1) {
    dropout_factors<A>(p, rows, first, keys, scratch.factors);
    p.softcap != 0 ? softmax(Flag<true>{}, Flag<true>{}) : softmax(Flag<true>{}, Flag<false>{});
  } else {
    p.softcap != 0 ? softmax(Flag<false>{}, Flag<true>{}) : softmax(Flag<false>{}, Flag<false>{});
  }
}

template <class S>
PF_INLINE void pack_dout(const AttentionBwd& call, int64_t b, int64_t head, int64_t first, int64_t count,
                         Operand<S>* dout_t) {
  pack_transposed<S>([&](int64_t lane) { return at<S>(call.dout, call.dout_stride, b, head, first + lane); },
                     call.dout_stride.dim[3], count, call.of.Ev, Acc<S>(1), dout_t);
}

// Query blocks of which some row sees a key of [first, first + keys): monotone in `first`.
template <class A>
PF_INLINE KeyRange visible_blocks(const Attention& p, int64_t first, int64_t keys) {
  int64_t begin = 0, end = p.L;
  if (p.window_right >= 0) begin = min_of(p.L, max_of(0, first - p.diagonal - p.window_right));
  if (p.window_left >= 0) end = max_of(0, min_of(p.L, first + keys - p.diagonal + p.window_left));
  return {begin / kQueries<A>, end > begin ? ceil_div(end, kQueries<A>) : begin / kQueries<A>};
}

// Waits until *progress > least. The predecessor was started earlier, so it is running or done.
PF_INLINE void wait_beyond(const int64_t* progress, int64_t least) {
  for (int spin = 0; __atomic_load_n(progress, __ATOMIC_ACQUIRE) <= least; spin++) {
    if (spin > 2000) sched_yield();
  }
}
constexpr int64_t kAllDone = INT64_MAX;

// Keys of [first, first + keys) that some of the rows sees, as whole register tiles where the block has them.
template <class A>
PF_INLINE KeyRange seen_of_block(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys) {
  const KeyRange seen = visible_keys(p, rows);
  const int64_t begin = max_of(0, seen.begin - first) / kTileRows * kTileRows;
  const int64_t end = min_of(keys, round_up(max_of(0, seen.end - first), kTileRows));
  return {first + begin, first + max_of(begin, end)};
}

// dk and dv of one block of keys, and its part of dq.
template <class S>
void key_block_bwd(const AttentionBwd& call, int64_t b, int64_t kv_head, int64_t block, bool in_turn,
                   const BwdWorkspace<Operand<S>>& shared, const BwdScratch<Operand<S>>& scratch) {
  typedef Operand<S> T;
  typedef Acc<S> A;
  const Attention& p = call.of;
  constexpr int n = kLanes<A>, size = kQueries<A>, terms = kTerms<T>;
  const int64_t group = p.H / p.Hkv, blocks = ceil_div(p.L, size), key_blocks = ceil_div(p.S, kBwdKeys);
  const int64_t first = block * kBwdKeys, keys = min_of(kBwdKeys, p.S - first), E = padded<A>(p.E),
                Ev = padded<A>(p.Ev);
  auto k = rows_at<S>(p.k, p.k_stride, b, kv_head, first, keys, p.E, scratch.k);
  auto k_joined =
      terms > 1 ? joined_rows_at<S>(p.k, p.k_stride, b, kv_head, first, keys, p.E, p.E, scratch.k_joined) : k;
  auto v = rows_at<S>(p.v, p.v_stride, b, kv_head, first, keys, p.Ev, scratch.v);
  memset((void*)scratch.dk, 0, keys * E * sizeof(A));
  memset((void*)scratch.dv, 0, keys * Ev * sizeof(A));
  int64_t* mine = shared.progress + (b * p.Hkv + kv_head) * key_blocks + block;

  KeyRange visible = visible_blocks<A>(p, first, keys);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
    const int64_t of_head = b * p.H + head;
    for (int64_t query_block = visible.begin; query_block < visible.end; query_block++) {
      const int64_t query = query_block * size, count = min_of(size, p.L - query);
      QueryBlock<A> rows;
      rows.set(b, head, query, count, p.L);
      RowConstants<A> constants(call, shared.delta, of_head * p.L + query, count);
      pack_queries<S>(p, rows, scratch.q_t);
      pack_dout<S>(call, b, head, query, count, scratch.dout_t);
      auto q_rows = joined_rows_at<S>(p.q, p.q_stride, b, head, query, count, p.E, E, scratch.q_rows);
      auto dout_rows =
          joined_rows_at<S>(call.dout, call.dout_stride, b, head, query, count, p.Ev, Ev, scratch.dout_rows);
      // On a causal diagonal less than half of the block is seen.
      const KeyRange seen = seen_of_block(p, rows, first, keys);
      const int64_t skipped = seen.begin - first, count_seen = seen.end - seen.begin;
      tile_bwd<S>(call, rows, constants, seen.begin, count_seen, {k.at + skipped * k.stride, k.stride},
                  {v.at + skipped * v.stride, v.stride}, scratch);
      const Rows<T> probs = {(const T*)scratch.probs, size / terms},
                    dscores = {(const T*)scratch.dscores, size / terms};
      product<T, kAdd, kRowMajor>(count_seen, Ev / n, ceil_div(count, terms), probs, dout_rows,
                                  scratch.dv + skipped * Ev, Ev);
      product<T, kAdd, kRowMajor>(count_seen, E / n, ceil_div(count, terms), dscores, q_rows, scratch.dk + skipped * E,
                                  E);
      const int64_t step = (head - kv_head * group) * blocks + query_block;
      if (in_turn && block > 0) wait_beyond(mine - 1, step);
      product<T, kAdd, kColumnMajor>(p.E, kTileVectors, ceil_div(count_seen, terms),
                                     {k_joined.at + skipped / terms * k_joined.stride, k_joined.stride},
                                     {scratch.dscores_joined, size},
                                     shared.dq_t + (of_head * blocks + query_block) * p.E * size, size);
      if (in_turn) __atomic_store_n(mine, step + 1, __ATOMIC_RELEASE);
    }
  }
  if (in_turn) {
    if (block > 0) wait_beyond(mine - 1, kAllDone - 1);
    __atomic_store_n(mine, kAllDone, __ATOMIC_RELEASE);
  }

  for (int64_t key = 0; key < keys; key++) {
    S* dk = (S*)at<S>(call.dk, call.dk_stride, b, kv_head, first + key);
    S* dv = (S*)at<S>(call.dv, call.dv_stride, b, kv_head, first + key);
    for (int64_t col = 0; col < p.E; col += n)
      store_n(dk + col, load(scratch.dk + key * E + col) * (A)p.scale, p.E - col);
    for (int64_t col = 0; col < p.Ev; col += n) store_n(dv + col, load(scratch.dv + key * Ev + col), p.Ev - col);
  }
}

// delta of a block of rows; dq starts from zero.
template <class S>
void start_bwd(const AttentionBwd& call, int64_t of_head, int64_t block, const BwdWorkspace<Operand<S>>& shared) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  constexpr int n = kLanes<A>, size = kQueries<A>;
  const int64_t blocks = ceil_div(p.L, size), b = of_head / p.H, head = of_head % p.H;
  memset((void*)(shared.dq_t + (of_head * blocks + block) * p.E * size), 0, p.E * size * sizeof(A));
  for (int64_t row = block * size; row < min_of(p.L, (block + 1) * size); row++) {
    const S* dout = at<S>(call.dout, call.dout_stride, b, head, row);
    const S* out = at<S>(call.out, call.out_stride, b, head, row);
    int64_t dout_step = call.dout_stride.dim[3], out_step = call.out_stride.dim[3];
    const int64_t cols = call.of_weights ? p.S : p.Ev;
    Vec<A> sum = {};
    for (int64_t col = 0; col < cols; col += n)
      sum = fma(load_strided<S>(dout + col * dout_step, dout_step, cols - col),
                load_strided<S>(out + col * out_step, out_step, cols - col), sum);
    A dlse = call.dlse ? ((const A*)call.dlse)[of_head * p.L + row] : A(0);
    shared.delta[of_head * p.L + row] = reduce_add(sum) - dlse;
  }
}

template <class S>
void finish_dq(const AttentionBwd& call, int64_t of_head, int64_t block, const BwdWorkspace<Operand<S>>& shared) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  constexpr int size = kQueries<A>;
  Vec<A> scale[kTileVectors];
  for (int j = 0; j < kTileVectors; j++) scale[j] = splat<Vec<A>>((A)p.scale);
  const int64_t blocks = ceil_div(p.L, size), first = block * size;
  unpack_transposed<S>(
      shared.dq_t + (of_head * blocks + block) * p.E * size, min_of(size, p.L - first), p.E, scale,
      [&](int64_t lane) { return at<S>(call.dq, call.dq_stride, of_head / p.H, of_head % p.H, first + lane); });
}

}  // namespace

}  // namespace PF_ISA::attention
