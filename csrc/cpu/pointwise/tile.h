// Fused kernels work on tiles, some elements that stay in the first-level cache. One loop, compiled for each activation
// in float and in double, does the arithmetic; 16-bit types come and go through tiles of accumulators, and so do the
// values of channels and random numbers: what is fused, of which type, and how it lies in memory does not multiply
// loops.
#pragma once
#include "../../common/pointwise.h"
#include "../core/parallel.h"
#include "activations.h"

namespace PF_ISA::pointwise {

namespace {

constexpr int kTile = 1024;  // elements; whole blocks of dropout's words
static_assert(kElementwiseGrain % kTile == 0, "threads begin with a tile");

// Loops over a tile compute whole vectors: what lies behind the last element is never stored.
template <class A>
struct Tile {
  A at[kTile + kLanes<A>] __attribute__((aligned(64)));
  void fill(A value) {
    for (int i = 0; i < kTile; i++) at[i] = value;
  }
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

// A load, with what lies a tile further set on its way: while other loops go over this tile, memory would rest.
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

// Is memory of this type what the arithmetic reads and writes?
template <class S>
PF_INLINE constexpr bool is_whole(int64_t count) {
  return sizeof(S) == sizeof(Acc<S>) && count % kLanes<Acc<S>> == 0;
}
// Elements for the arithmetic: where they lie, or in the tile.
template <class S>
PF_INLINE const Acc<S>* from(const S* x, int64_t count, Tile<Acc<S>>& tile) {
  if (is_whole<S>(count)) return (const Acc<S>*)x;
  load_tile(x, count, tile.at);
  return tile.at;
}
// Where the arithmetic puts a result: where it belongs, or into the tile, from where `deliver` takes it.
template <class S>
PF_INLINE Acc<S>* place(S* y, int64_t count, Tile<Acc<S>>& tile) {
  return is_whole<S>(count) ? (Acc<S>*)y : tile.at;
}
template <class S>
PF_INLINE void deliver(S* y, int64_t count, const Acc<S>* z) {
  if (!is_whole<S>(count)) store_tile(y, count, z);
}

struct Identity {
  static constexpr bool kFromOutput = false, kIsCurved = false;
  template <class V>
  PF_MEMBER V forward(V x) const {
    return x;
  }
  template <class V>
  PF_MEMBER V backward(V dy, V) const {
    return dy;
  }
};

template <class F>
PF_INLINE void for_optional_activation(const Activation& activation, F f) {
  if (activation.row < 0) return f(Identity{});
  for_activation(activation, f);
}

}  // namespace

}  // namespace PF_ISA::pointwise
