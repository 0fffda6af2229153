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

template <class S, class M>
void dmask_bwd_typed(const AttentionBwd& call, const BwdWorkspace<Operand<S>>& shared, int num_threads) {
  typedef Acc<S> A;
  constexpr int64_t size = kQueries<A>;
  const Attention& p = call.of;
  const int64_t* of = call.dmask_size;
  const int64_t row_tiles = ceil_div(p.L, size), key_tiles = ceil_div(p.S, kBwdKeys);
  // A dimension of one element is summed over; with one element to sum that is the element.
  const int64_t row_tasks = of[2] == 1 ? 1 : row_tiles, key_tasks = of[3] == 1 ? 1 : key_tiles;
  parallel_tasks(of[0] * of[1] * row_tasks * key_tasks, num_threads, [&](int64_t task, int thread) {
    const int64_t key_task = task % key_tasks, row_task = task / key_tasks % row_tasks;
    const int64_t head_task = task / (key_tasks * row_tasks) % of[1],
                  batch_task = task / (key_tasks * row_tasks) / of[1];
    const BwdScratch<Operand<S>> scratch = shared.scratch(thread, p.E, p.Ev);
    A* sum = scratch.dk;  // free in this pass, and larger than a tile: see BwdScratch
    memset((void*)sum, 0, kBwdKeys * size * sizeof(A));
    for (int64_t b = of[0] == 1 ? 0 : batch_task; b < (of[0] == 1 ? p.B : batch_task + 1); b++)
      for (int64_t head = of[1] == 1 ? 0 : head_task; head < (of[1] == 1 ? p.H : head_task + 1); head++)
        for (int64_t row = of[2] == 1 ? 0 : row_task; row < (of[2] == 1 ? row_tiles : row_task + 1); row++)
          for (int64_t key = of[3] == 1 ? 0 : key_task; key < (of[3] == 1 ? key_tiles : key_task + 1); key++)
            add_dmask_tile<S>(call, b, head, row * size, key * kBwdKeys, sum, shared, scratch);

    if (of[3] == 1) {
      for (int64_t key = 1; key < kBwdKeys; key++)
        for (int64_t i = 0; i < size; i += kLanes<A>) store(sum + i, load(sum + i) + load(sum + key * size + i));
    }
    const int64_t query = row_task * size, first = key_task * kBwdKeys;
    const int64_t rows = of[2] == 1 ? 1 : min_of(size, p.L - query),
                  keys = of[3] == 1 ? 1 : min_of(kBwdKeys, p.S - first);
    if (of[2] == 1) {
      for (int64_t key = 0; key < keys; key++) {
        Vec<A> total = {};
        for (int64_t i = 0; i < size; i += kLanes<A>) total = total + load(sum + key * size + i);
        sum[key * size] = reduce_add(total);
      }
    }
    M* to = (M*)call.dmask + (batch_task * of[1] + head_task) * of[2] * of[3];
    Vec<A> ones[kTileVectors];
    for (Vec<A>& one : ones) one = splat<Vec<A>>(1);
    unpack_transposed<M>(sum, rows, keys, ones, [&](int64_t row) { return to + (query + row) * of[3] + first; });
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
