// Rotary position embedding, a row at a time: read once, turned in registers, written once.
#pragma once
#include "../../common/embedding.h"
#include "../core/memory.h"
#include "../core/parallel.h"
#include "../simd/transpose.h"

namespace PF_ISA::embedding {

namespace {

struct Neighbours {  // each with the other of its pair
  static constexpr int lane(int i) { return i ^ 1; }
};
template <int kFrom>
struct Twice {  // every lane from kFrom on for the two elements of a pair
  static constexpr int lane(int i) { return kFrom + i / 2; }
};

template <class V>
PF_INLINE V minus_plus() {
  V signs;
  for (int i = 0; i < kLanesOf<V>; i++) signs[i] = i % 2 ? 1 : -1;
  return signs;
}

template <class S>
PF_INLINE void turn_halves(const S* x, const Acc<S>* cos, const Acc<S>* sin, S* y, int64_t half, Acc<S> sign) {
  typedef Vec<Acc<S>> V;
  for (int64_t i = 0; i < half; i += kLanes<Acc<S>>) {
    const int64_t count = half - i;
    const V a = load_n(x + i, count), b = load_n(x + half + i, count);
    const V c = load_n(cos + i, count), s = load_n(sin + i, count) * sign;
    store_n(y + i, a * c - b * s, count);
    store_n(y + half + i, b * c + a * s, count);
  }
}

template <int kFrom, class S, class V>
PF_INLINE void turn_vector(const S* x, V c, V s, S* y, int64_t count) {
  if (count <= 0) return;
  const V v = load_n(x, count);
  const V across = shuffle<Neighbours>(v, v) * shuffle<Twice<kFrom>>(s, s) * minus_plus<V>();
  store_n(y, v * shuffle<Twice<kFrom>>(c, c) + across, count);
}

template <class S>
PF_INLINE void turn_neighbours(const S* x, const Acc<S>* cos, const Acc<S>* sin, S* y, int64_t half, Acc<S> sign) {
  typedef Vec<Acc<S>> V;
  constexpr int lanes = kLanes<Acc<S>>;
  for (int64_t i = 0; i < half; i += lanes) {
    const int64_t count = half - i, j = 2 * i;
    const V c = load_n(cos + i, count), s = load_n(sin + i, count) * sign;
    turn_vector<0>(x + j, c, s, y + j, 2 * count);
    turn_vector<lanes / 2>(x + j + lanes, c, s, y + j + lanes, 2 * count - lanes);
  }
}

template <class S>
void turn_rows(const Rotary& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  const T sign = p.inverse ? -1 : 1;
  for (int64_t row = begin; row < end; row++) {
    const int64_t at[3] = {row / p.size[2] / p.size[1], row / p.size[2] % p.size[1], row % p.size[2]};
    int64_t from = 0, to = 0, of_table = 0;
    for (int d = 0; d < 3; d++) {
      from += at[d] * p.x_stride[d];
      to += at[d] * p.y_stride[d];
      of_table += at[d] * p.table_stride[d];
    }
    const S* x = (const S*)p.x + from;
    S* y = (S*)p.y + to;
    const T *cos = (const T*)p.cos + of_table, *sin = (const T*)p.sin + of_table;
    if (p.interleaved)
      turn_neighbours(x, cos, sin, y, p.half, sign);
    else
      turn_halves(x, cos, sin, y, p.half, sign);
    memcpy(y + 2 * p.half, x + 2 * p.half, (p.dim - 2 * p.half) * sizeof(S));
  }
}

}  // namespace

void rotary(const Rotary& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    parallel_ranges(p.size[0] * p.size[1] * p.size[2], max_of(1, 4 * kElementwiseGrain / max_of(1, p.dim)), num_threads,
                    [&](int64_t begin, int64_t end) { turn_rows<decltype(storage)>(p, begin, end); });
  });
}

}  // namespace PF_ISA::embedding
