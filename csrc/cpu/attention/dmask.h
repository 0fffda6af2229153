// The gradient of an additive mask, summed where the mask was broadcast. A pass of its own, only when it is asked for:
// each element of the result belongs to one task, which walks over everything that was broadcast to it, in order. That
// computes two of the five products again, takes no memory, and is deterministic.
#pragma once
#include "backward.h"

namespace PF_ISA::attention {

// Sum of a tile's dscores over all that this mask tile was broadcast to.
template <class S>
void add_dmask_tile(const AttentionBwd& call, int64_t b, int64_t head, int64_t query, int64_t first, Acc<S>* sum,
                    const BwdWorkspace<Operand<S>>& shared, const BwdScratch<Operand<S>>& scratch) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  const int64_t count = min_of(kQueries<A>, p.L - query), of_head = b * p.H + head, kv_head = head / (p.H / p.Hkv);
  QueryBlock<A> rows;
  rows.set(b, head, query, count, p.L);
  KeyRange range = visible_keys(p, rows);
  const int64_t keys = min_of(kBwdKeys, p.S - first);
  if (first >= range.end || first + keys <= range.begin) return;
  RowConstants<A> constants(call, shared.delta, of_head * p.L + query, count);
  pack_queries<S>(p, rows, scratch.q_t);
  pack_dout<S>(call, b, head, query, count, scratch.dout_t);
  auto k = rows_at<S>(p.k, p.k_stride, b, kv_head, first, keys, p.E, scratch.k);
  auto v = rows_at<S>(p.v, p.v_stride, b, kv_head, first, keys, p.Ev, scratch.v);
  tile_bwd<S, true>(call, rows, constants, first, keys, k, v, scratch);
  for (int64_t i = 0; i < keys * kQueries<A>; i += kLanes<A>) store(sum + i, load(sum + i) + load(scratch.dscores + i));
}

// What one task walks over in a dimension: all of it where the mask was broadcast, else its own element or tile.
struct Walk {
  int64_t begin, end;
  Walk(bool is_broadcast, int64_t own, int64_t count)
      : begin(is_broadcast ? 0 : own), end(is_broadcast ? count : own + 1) {}
};

// sum [keys, queries]: the rows of all keys, into the first.
template <class A>
PF_INLINE void sum_over_keys(A* sum) {
  constexpr int64_t size = kQueries<A>;
  for (int64_t key = 1; key < kBwdKeys; key++)
    for (int64_t i = 0; i < size; i += kLanes<A>) store(sum + i, load(sum + i) + load(sum + key * size + i));
}
// The same over the queries of each of these keys, into the first query.
template <class A>
PF_INLINE void sum_over_queries(A* sum, int64_t keys) {
  constexpr int64_t size = kQueries<A>;
  for (int64_t key = 0; key < keys; key++) {
    Vec<A> total = {};
    for (int64_t i = 0; i < size; i += kLanes<A>) total = total + load(sum + key * size + i);
    sum[key * size] = reduce_add(total);
  }
}

template <class S, class M>
void dmask_bwd_typed(const AttentionBwd& call, const BwdWorkspace<Operand<S>>& shared, int num_threads) {
  typedef Acc<S> A;
  constexpr int64_t size = kQueries<A>;
  const Attention& p = call.of;
  const int64_t* of = call.dmask_size;
  const int64_t row_tiles = ceil_div(p.L, size), key_tiles = ceil_div(p.S, kBwdKeys);
  // A dimension of one element is summed over; with one element to sum that is the element.
  const bool of_batch = of[0] == 1, of_head = of[1] == 1, of_row = of[2] == 1, of_key = of[3] == 1;
  const int64_t row_tasks = of_row ? 1 : row_tiles, key_tasks = of_key ? 1 : key_tiles;
  parallel_tasks(of[0] * of[1] * row_tasks * key_tasks, num_threads, [&](int64_t task, int thread) {
    const int64_t key_task = task % key_tasks, row_task = task / key_tasks % row_tasks;
    const int64_t matrix = task / (key_tasks * row_tasks);  // of the mask
    const BwdScratch<Operand<S>> scratch = shared.scratch(thread, p.E, p.Ev);
    A* sum = scratch.dk;  // free in this pass, and larger than a tile: see BwdScratch
    memset((void*)sum, 0, kBwdKeys * size * sizeof(A));
    const Walk batches(of_batch, matrix / of[1], p.B), heads(of_head, matrix % of[1], p.H);
    const Walk rows(of_row, row_task, row_tiles), keys(of_key, key_task, key_tiles);
    for (int64_t b = batches.begin; b < batches.end; b++)
      for (int64_t head = heads.begin; head < heads.end; head++)
        for (int64_t row = rows.begin; row < rows.end; row++)
          for (int64_t key = keys.begin; key < keys.end; key++)
            add_dmask_tile<S>(call, b, head, row * size, key * kBwdKeys, sum, shared, scratch);

    const int64_t query = row_task * size, first = key_task * kBwdKeys;
    const int64_t row_count = of_row ? 1 : min_of(size, p.L - query),
                  key_count = of_key ? 1 : min_of(kBwdKeys, p.S - first);
    if (of_key) sum_over_keys(sum);
    if (of_row) sum_over_queries(sum, key_count);
    M* to = (M*)call.dmask + matrix * of[2] * of[3];
    Vec<A> ones[kTileVectors];
    for (Vec<A>& one : ones) one = splat<Vec<A>>(1);
    unpack_transposed<M>(sum, row_count, key_count, ones,
                         [&](int64_t row) { return to + (query + row) * of[3] + first; });
  });
}

template <class S>
void dmask_bwd(const AttentionBwd& call, const BwdWorkspace<Operand<S>>& shared, int num_threads) {
  for_mask_type(call.of.mask_type, [&](auto type) {
    typedef decltype(type) M;
    if constexpr (sizeof(M) > 1 && sizeof(Acc<M>) == sizeof(Acc<S>)) dmask_bwd_typed<S, M>(call, shared, num_threads);
  });
}

}  // namespace PF_ISA::attention
