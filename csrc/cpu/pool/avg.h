// Average pooling.
#pragma once
#include "backward.h"
#include "forward.h"

namespace PF_ISA::pool {

namespace {

// Sums of runs are summed: a window may be a plane, and float loses a digit for every hundred terms of one sum.
template <class S>
struct Mean {
  typedef S Storage;
  typedef Acc<S> Value;
  typedef Value T;
  typedef Vec<T> V;
  typedef Places<T> P;
  static constexpr T kAbsent = 0;
  S* y;
  bool counts_padding;
  int64_t divisor;

  template <class X>
  struct Sums {
    X of_run, total;
  };
  typedef Sums<V> Lanes;
  typedef Sums<T> One;
  PF_MEMBER Lanes start(P) const { return Lanes{V{}, V{}}; }
  PF_MEMBER One start(int64_t) const { return One{0, 0}; }
  template <class X, class Place>
  PF_MEMBER void fold(Sums<X>& kept, X x, Place) const {
    kept.of_run += x;
  }
  template <class X>
  PF_MEMBER void end_of_run(Sums<X>& kept) const {
    kept.total += kept.of_run;
    kept.of_run = X{};
  }
  PF_MEMBER void join(One& kept, const Lanes& lanes, int64_t i) const { kept.total += lanes.total[i]; }
  PF_MEMBER One together(const Lanes& lanes) const { return {0, reduce_add(lanes.total)}; }

  PF_MEMBER T divisor_of(int64_t counted) const { return (T)(divisor ? divisor : counted); }
  template <class Count>
  PF_MEMBER void store(int64_t at, const Lanes& kept, int64_t, int64_t, int64_t counted, Count lanes) const {
    store_lanes(y + at, kept.total / divisor_of(counted), lanes);
  }
  PF_MEMBER void store(int64_t at, const One& kept, int64_t counted) const {
    put(y + at, kept.total / divisor_of(counted));
  }
};

template <class S>
struct MeanGradient {
  typedef S Storage;
  typedef Acc<S> Value;
  typedef Value T;
  typedef Vec<T> V;
  typedef Places<T> P;
  const S* dy;
  S* dx;
  bool counts_padding;
  int64_t divisor;

  template <class Count>
  PF_MEMBER V of(int64_t at, P, Count lanes) const {
    return load_lanes(dy + at, lanes);
  }
  PF_MEMBER V all(int64_t at, P, int64_t counted) const { return splat<V>(whole(get(dy + at), counted)); }
  PF_MEMBER void ask_ahead(int64_t at) const { __builtin_prefetch((const char*)(dy + at) + kAhead); }
  PF_MEMBER void spread(int64_t at, const PoolAxis& axis, int64_t o, int64_t counted, int64_t, Range part,
                        T* sums) const {
    const Taps w = taps_of(axis, o, counts_padding);
    const T share = whole(get(dy + at), counted * w.counted);
    const int64_t end = min_of(w.first + w.count, part.end);
    for (int64_t x = max_of(w.first, part.begin); x < end; x++) sums[x - part.begin] += share;
  }
  PF_MEMBER void fill_plane(int64_t outer, int64_t size) const {
    const V share = splat<V>(whole(get(dy + outer), size));
    for_lanes<T>(0, size, [&](int64_t x, auto lanes) { store_lanes(dx + x, share, lanes); });
  }
  template <class X>
  PF_MEMBER X whole(X sum, int64_t counted) const {
    return sum / (T)(divisor ? divisor : counted);
  }
};

}  // namespace

void avg_pool_fwd(const AvgPool& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    const Mean<S> f = {(S*)p.to, p.counts_padding, p.divisor};
    fold_windows(p.shape, (const S*)p.from, f, f, num_threads);
  });
}

void avg_pool_bwd(const AvgPool& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    gather_windows(p.shape, MeanGradient<S>{(const S*)p.from, (S*)p.to, p.counts_padding, p.divisor}, num_threads);
  });
}

}  // namespace PF_ISA::pool
