// Max pooling. As in torch a NaN wins, the last one of a window; else the first of the largest.
#pragma once
#include "backward.h"
#include "forward.h"
#include "scatter.h"

namespace PF_ISA::pool {

namespace {

// I: the type of the indices that are stored. kIndexed: it is known where the largest element is; its index is stored
// where there is room for it.
template <class S, class I, bool kIndexed>
struct Largest {
  typedef S Storage;
  typedef Acc<S> Value;
  typedef Value T;
  typedef Vec<T> V;
  typedef Places<T> P;
  static constexpr T kAbsent = -(T)__builtin_inf();
  static constexpr bool counts_padding = false;
  S* y;
  I* indices;

  struct Lanes {
    V value;
    P place;
  };
  struct One {
    T value;
    int64_t place;
  };
  PF_MEMBER Lanes start(P first) const { return {splat<V>(kAbsent), first}; }
  PF_MEMBER One start(int64_t first) const { return {kAbsent, first}; }

  PF_MEMBER void fold(Lanes& kept, V x, P place) const {
    if constexpr (kIndexed) {
      const P wins = (x > kept.value) | (x != x);
      kept.value = select(wins, x, kept.value);
      kept.place = select(wins, place, kept.place);
    } else {
      kept.value = select(x != x, x, max_fast(x, kept.value));  // of equal ones the second argument, and of a NaN in it
    }
  }
  PF_MEMBER void fold(One& kept, T x, int64_t place) const {
    if (x > kept.value || x != x) kept = {x, place};
  }
  template <class Kept>
  PF_MEMBER void end_of_run(Kept&) const {}

  PF_MEMBER void join(One& kept, const Lanes& lanes, int64_t i) const {
    const T x = lanes.value[i];
    const int64_t place = lanes.place[i];
    const bool is_nan = x != x, has_nan = kept.value != kept.value;
    if (is_nan ? !has_nan || place > kept.place
               : !has_nan && (x > kept.value || (x == kept.value && place < kept.place)))
      kept = {x, place};
  }
  One together(const Lanes& lanes) const {
    One best = {lanes.value[0], lanes.place[0]};
    for (int i = 1; i < kLanes<T>; i++) join(best, lanes, i);
    return best;
  }

  // The outputs from `at` on; places were counted from `base` on for the first lane, and `step` more for each other.
  template <class Count>
  PF_MEMBER void store(int64_t at, const Lanes& kept, int64_t base, int64_t step, int64_t, Count lanes) const {
    store_lanes(y + at, kept.value, lanes);
    if constexpr (kIndexed)
      if (indices) store_places<T>(indices + at, kept.place + places_from<T>(base, step), lanes);
  }
  PF_MEMBER void store(int64_t at, const One& kept, int64_t) const {
    put(y + at, kept.value);
    if (kIndexed && indices) indices[at] = (I)kept.place;
  }
};

// Of pixels whose windows are small.
template <class S, class I>
struct LargestGradient {
  typedef S Storage;
  typedef Acc<S> Value;
  typedef Value T;
  typedef Vec<T> V;
  typedef Places<T> P;
  static constexpr bool counts_padding = false;
  const S* dy;
  const I* indices;
  S* dx;

  template <class Count>
  PF_MEMBER V of(int64_t at, P place, Count lanes) const {
    return select(load_places<T>(indices + at, lanes) == place, load_lanes(dy + at, lanes), V{});
  }
  template <class X>
  PF_MEMBER X whole(X sum, int64_t) const {
    return sum;
  }
};

}  // namespace

void max_pool_fwd(const MaxPoolFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    S* y = (S*)p.y;
    const auto fold = [&](auto f, auto of_long) { fold_windows(p.shape, (const S*)p.x, f, of_long, num_threads); };
    if (p.index == PoolIndex::i32) {
      const Largest<S, int32_t, true> f = {y, (int32_t*)p.indices};
      fold(f, f);
    } else if (p.index == PoolIndex::i64) {
      const Largest<S, int64_t, true> f = {y, (int64_t*)p.indices};
      fold(f, f);
    } else {
      fold(Largest<S, int32_t, false>{y, nullptr}, Largest<S, int32_t, true>{y, nullptr});
    }
  });
}

void max_pool_bwd(const MaxPoolBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    const auto gather = [&](auto* indices) {
      typedef LargestGradient<S, decltype(*indices + 0)> G;
      if (p.shape.inner == 1)
        scatter_planes<S>(p, indices, num_threads);
      else if (max_pool_scatters_images(p.shape, p.dtype))
        scatter_images<S>(p, indices, num_threads);
      else
        gather_images(p.shape, G{(const S*)p.dy, indices, (S*)p.dx}, num_threads);
    };
    if (p.index == PoolIndex::i32)
      gather((const int32_t*)p.indices);
    else
      gather((const int64_t*)p.indices);
  });
}

}  // namespace PF_ISA::pool
