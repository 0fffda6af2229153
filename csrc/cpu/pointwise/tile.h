// Fused kernels work on tiles: some accumulators in the first-level cache, to which one stage after another is applied.
// A stage is compiled once for each activation or each storage type, not for every combination of what is fused; what
// its loads and stores take is hidden behind the memory's.
#pragma once
#include "../../common/pointwise.h"
#include "../core/parallel.h"
#include "activations.h"

namespace PF_ISA::pointwise {

namespace {

constexpr int kTile = 1024;  // elements; whole blocks of dropout's words
static_assert(kElementwiseGrain % kTile == 0, "threads begin with a tile");

// Stages that take no addresses outside compute whole vectors: what lies behind the last element is never stored.
template <class A>
struct Tile {
  A at[kTile + kLanes<A>] __attribute__((aligned(64)));
};

// body(first, count) over the tiles of [begin, end); begin is a multiple of kTile.
template <class Body>
PF_INLINE void for_tiles(int64_t begin, int64_t end, Body body) {
  for (int64_t first = begin; first < end; first += kTile) body(first, min_of(kTile, end - first));
}

// The same over [0, n) on threads.
template <class Body>
PF_INLINE void parallel_tiles(int64_t n, int threads, Body body) {
  parallel_ranges(n, kElementwiseGrain, threads, [&](int64_t begin, int64_t end) { for_tiles(begin, end, body); });
}

// body(i, count) over the vectors of a tile.
template <class A, class Body>
PF_INLINE void for_vectors(int64_t count, Body body) {
  constexpr int lanes = kLanes<A>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, (int64_t)lanes);
  if (i < count) body(i, count - i);
}

// A load, with what lies a tile further set on its way: while another stage computes, memory would rest. Worth a third of
// SwiGLU's time from memory; a loop that computes nothing but this tile is slower for it.
template <class S>
PF_INLINE Vec<Acc<S>> load_ahead(const S* x, int64_t count) {
  __builtin_prefetch(x + kTile);
  return load_n(x, count);
}

template <class S>
PF_INLINE void load_tile(const S* x, int64_t count, Acc<S>* z) {
  for_vectors<Acc<S>>(count, [&](int64_t i, int64_t n) { store(z + i, load_ahead(x + i, n)); });
}
template <class S>
PF_INLINE void store_tile(S* y, int64_t count, const Acc<S>* z) {
  for_vectors<Acc<S>>(count, [&](int64_t i, int64_t n) { store_n(y + i, load(z + i), n); });
}

// z = activation(z)
template <class A>
__attribute__((noinline)) void activate(const Activation& activation, int64_t count, A* z) {
  for_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < count; i += kLanes<A>) store(z + i, act.forward(load(z + i)));
  });
}

// d = d activation'(z), and with kOutput z = activation(z)
template <class A, bool kOutput>
__attribute__((noinline)) void activate_bwd(const Activation& activation, int64_t count, A* z, A* d) {
  for_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const Vec<A> x = load(z + i);
      if constexpr (decltype(act)::kFromOutput || kOutput) {
        const Vec<A> y = act.forward(x);
        store(d + i, act.backward(load(d + i), decltype(act)::kFromOutput ? y : x));
        if constexpr (kOutput) store(z + i, y);
      } else {
        store(d + i, act.backward(load(d + i), x));
      }
    }
  });
}

}  // namespace

}  // namespace PF_ISA::pointwise
