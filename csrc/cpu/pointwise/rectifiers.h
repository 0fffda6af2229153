// PReLU, whose slope is a parameter, and RReLU, whose slope is drawn.
#pragma once
#include "channels.h"
#include "random.h"

namespace PF_ISA::pointwise {

void prelu_fwd(const PreluFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    parallel_tiles(p.n, num_threads, [&](int64_t first, int64_t count) {
      Tile<A> spread;
      const S* x = (const S*)p.x + first;
      S* y = (S*)p.y + first;
      const A* weight = by_element((const A*)p.weight, p.of, first, count, spread);
      for_vectors<A>(count, [&](int64_t i, int64_t n) {
        const Vec<A> v = load_n(x + i, n);
        store_n(y + i, select(v > Vec<A>{}, v, load(weight + i) * v), n);
      });
    });
  });
}

namespace {

// dx of a tile, and with kSums what its elements add to dweight.
template <bool kSums, class S>
PF_INLINE void prelu_bwd_tile(const PreluBwd& p, int64_t first, int64_t count, Acc<S>* added) {
  using A = Acc<S>;
  Tile<A> spread;
  const S *dy = (const S*)p.dy + first, *x = (const S*)p.x + first;
  S* dx = (S*)p.dx + first;
  const A* weight = by_element((const A*)p.weight, p.of, first, count, spread);
  for_vectors<A>(count, [&](int64_t i, int64_t n) {
    const Vec<A> v = load_n(x + i, n), d = load_n(dy + i, n);
    if constexpr (kSums) store(added + i, select(v > Vec<A>{}, Vec<A>{}, v * d));
    store_n(dx + i, select(v > Vec<A>{}, d, load(weight + i) * d), n);
  });
}

}  // namespace

void prelu_bwd(const PreluBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    if (!p.dweight)
      return parallel_tiles(p.n, num_threads,
                            [&](int64_t first, int64_t count) { prelu_bwd_tile<false, S>(p, first, count, nullptr); });
    summed_by_channel(p.n, p.of, p.workspace, (A*)p.dweight, num_threads,
                      [&](int64_t begin, int64_t end, ChannelSums<A>& sums) {
                        Tile<A> added;
                        for_tiles(begin, end, [&](int64_t first, int64_t count) {
                          prelu_bwd_tile<true, S>(p, first, count, added.at);
                          sums.add(added.at, first, count);
                        });
                      });
  });
}

void rrelu(const Rrelu& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using A = Acc<S>;
    parallel_tiles(p.n, num_threads, [&](int64_t first, int64_t count) {
      Tile<A> slopes;
      draw(p.seed, p.lower, p.upper, first, count, slopes.at);
      const S *d = (const S*)p.d + first, *x = (const S*)p.x + first;
      S* y = (S*)p.y + first;
      for_vectors<A>(count, [&](int64_t i, int64_t n) {
        const Vec<A> given = load_n(d + i, n);
        store_n(y + i, select(load_n(x + i, n) <= Vec<A>{}, given * load(slopes.at + i), given), n);
      });
    });
  });
}

}  // namespace PF_ISA::pointwise
