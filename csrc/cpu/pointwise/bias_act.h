// y = residual + dropout(clamp(gain activation(x + bias))): the epilogue alone, on what lies in memory already.
#pragma once
#include "epilogue.h"

namespace PF_ISA::pointwise {

namespace {

template <class S>
PF_INLINE void store_sum(S* y, const S* residual, int64_t count, const Acc<S>* z, bool is_streamed) {
  typedef Acc<S> A;
  if constexpr (sizeof(S) == 4)
    if (is_streamed && count == kTile) {
      for (int64_t i = 0; i < kTile; i += kLanes<A>)
        store_stream(y + i, residual ? load(z + i) + load_ahead(residual + i, kTile) : load(z + i));
      return;
    }
  if (!residual) return store_tile(y, count, z);
  for_vectors<A>(count, [&](int64_t i, int64_t n) { store_n(y + i, load(z + i) + load_ahead(residual + i, n), n); });
}

}  // namespace

void bias_act_fwd(const BiasActFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const int64_t bytes = p.n * (int64_t)sizeof(S) * (p.residual ? 3 : 2);
    const bool is_streamed = bytes >= kStreamBytes && (uintptr_t)p.y % PF_VECTOR_BYTES == 0;
    parallel_ranges(p.n, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
      for_tiles(begin, end, [&](int64_t first, int64_t count) {
        Tile<Acc<S>> z;
        load_tile((const S*)p.x + first, count, z.at);
        epilogue_fwd(p.epilogue, first, count, z.at);
        store_sum((S*)p.y + first, p.residual ? (const S*)p.residual + first : nullptr, count, z.at, is_streamed);
      });
      if (is_streamed) stream_fence();
    });
  });
}

void bias_act_bwd(const BiasActBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    const auto gradient = [&](int64_t first, int64_t count, A* d) {
      Tile<A> z;
      load_tile((const S*)p.dy + first, count, d);
      if (p.x) load_tile((const S*)p.x + first, count, z.at);
      epilogue_bwd(p.epilogue, first, count, z.at, d);
      store_tile((S*)p.dx + first, count, d);
    };
    if (!p.dbias)
      return parallel_tiles(p.n, num_threads, [&](int64_t first, int64_t count) {
        Tile<A> d;
        gradient(first, count, d.at);
      });
    summed_by_channel(p.n, p.epilogue.of, p.workspace, (A*)p.dbias, num_threads,
                      [&](int64_t first, int64_t count, ChannelSums<A>& sums) {
                        Tile<A> d;
                        gradient(first, count, d.at);
                        sums.add(d.at, first, count);
                      });
  });
}

}  // namespace PF_ISA::pointwise
