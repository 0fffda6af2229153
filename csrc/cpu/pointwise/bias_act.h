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
    using A = Acc<S>;
    const int64_t bytes = p.n * (int64_t)sizeof(S) * (p.residual ? 3 : 2);
    const bool is_streamed = sizeof(S) == 4 && bytes >= kStreamBytes && (uintptr_t)p.y % PF_VECTOR_BYTES == 0;
    parallel_ranges(p.n, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
      Extras<A> extras(p.epilogue);
      Tile<A> in, out;
      for_tiles(begin, end, [&](int64_t first, int64_t count) {
        S* y = (S*)p.y + first;
        extras.move(first, count);
        const A* x = from((const S*)p.x + first, count, in);
        if (!p.residual && !is_streamed) {
          A* z = place(y, count, out);
          epilogue_fwd(extras, count, x, z);
          deliver(y, count, z);
        } else {
          epilogue_fwd(extras, count, x, out.at);
          store_sum(y, p.residual ? (const S*)p.residual + first : nullptr, count, out.at, is_streamed);
        }
      });
      if (is_streamed) stream_fence();
    });
  });
}

namespace {

// dx of a tile; where it lies for the arithmetic.
template <class S>
struct BiasActGradient {
  typedef Acc<S> A;
  const BiasActBwd& p;
  Extras<A> extras;
  Tile<A> dy_tile, x_tile, dx_tile;

  explicit BiasActGradient(const BiasActBwd& p) : p(p), extras(p.epilogue) {}

  const A* operator()(int64_t first, int64_t count) {
    extras.move(first, count);
    const A* dy = from((const S*)p.dy + first, count, dy_tile);
    const A* x = p.x ? from((const S*)p.x + first, count, x_tile) : dy;
    A* dx = place((S*)p.dx + first, count, dx_tile);
    if (p.epilogue.clamp >= 0)
      epilogue_bwd<true>(extras, count, dy, x, dx);
    else
      epilogue_bwd<false>(extras, count, dy, x, dx);
    deliver((S*)p.dx + first, count, dx);
    return dx;
  }
};

}  // namespace

void bias_act_bwd(const BiasActBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    if (!p.dbias)
      return parallel_ranges(p.n, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
        BiasActGradient<S> gradient(p);
        for_tiles(begin, end, [&](int64_t first, int64_t count) { gradient(first, count); });
      });
    summed_by_channel(
        p.n, p.epilogue.of, p.workspace, (A*)p.dbias, num_threads,
        [&](int64_t begin, int64_t end, ChannelSums<A>& sums) {
          BiasActGradient<S> gradient(p);
          for_tiles(begin, end, [&](int64_t first, int64_t count) { sums.add(gradient(first, count), first, count); });
        });
  });
}

}  // namespace PF_ISA::pointwise
