// The matrix of attention weights, for callers who ask to see it: softmax(scores) with dropout, [B, H, L, S]. Two
// passes over the keys, the second with the maximum and sum of the first. Its backward is attention's, with dP given
// instead of v dout^T.
#pragma once
#include "forward.h"

namespace PF_ISA::attention {

namespace {

template <class S>
void weights_of_block(const AttentionFwd& call, const QueryBlock<Acc<S>>& rows, int64_t kv_head,
                      const FwdScratch<S>& scratch) {
  typedef Acc<S> A;
  typedef Vec<A> V;
  const Attention& p = call.of;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
  pack_queries<S>(p, rows, scratch.q_t[0]);
  RowState<A> state;
  state.reset();
  A base[queries] __attribute__((aligned(64)));
  auto row_at = [&](int64_t lane, int64_t first) {
    return (S*)at<S>(call.out, call.out_stride, rows.batch, rows.head[lane], rows.i[lane]) + first;
  };

  for (int pass = 0; pass < 2; pass++) {
    for (int64_t first = 0; first < p.S; first += kKeys) {
      const int64_t keys = min_of(kKeys, p.S - first);
      auto k = rows_at<S>(p.k, p.k_stride, rows.batch, kv_head, first, keys, p.E, scratch.k);
      product_scores(keys, p.E, k, scratch.q_t[0], scratch.scores, (A)p.scale);
      finish_scores<A>(p, rows, first, keys, scratch.scores, nullptr);
      if (pass == 0) {
        online_softmax<A>(keys, scratch.scores, nullptr, state);
        continue;
      }
      if (p.keep_scale != 1) dropout_factors<A>(p, rows, first, keys, scratch.factors);
      for (int64_t i = 0; i < keys * queries; i += n) {
        V w = exp_difference<A>(load(scratch.scores + i) - load(base + i % queries));
        store(scratch.scores + i, p.keep_scale != 1 ? w * load(scratch.factors + i) : w);
      }
      unpack_transposed<S>(scratch.scores, rows.count, keys, state.sum,
                           [&](int64_t lane) { return row_at(lane, first); });
    }
    if (pass == 1) break;
    LogSum<A>(state).store(call, rows);
    for (int j = 0; j < kTileVectors; j++) {
      store(base + j * n, safe_maximum(state.max[j]));
      state.sum[j] = select(state.sum[j] == V{}, V{}, splat<V>(1) / state.sum[j]);  // no key at all: zeros
    }
  }
}

}  // namespace

}  // namespace PF_ISA::attention
