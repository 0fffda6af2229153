// Loads and stores of rows whose elements lie one, two or more apart, and vectors of indices.
#pragma once
#include "../../common/pool.h"
#include "../simd/transpose.h"
#include "../simd/vec.h"

namespace PF_ISA::pool {

namespace {

constexpr int64_t kAhead = 4096;    // bytes from what is read to what is asked for
constexpr int kChannelVectors = 4;  // of one pixel, kept in registers

// How many lanes are there: all, known as the code is compiled, or the first so many. How many vectors.
struct AllLanes {
  PF_INLINE int64_t most(int64_t lanes) { return lanes; }
};
template <int kCount>
struct Vectors {
  static constexpr int value = kCount;
};
struct FirstLanes {
  int64_t count;
  int64_t most(int64_t) const { return count; }
};

template <class S>
PF_INLINE Vec<Acc<S>> load_lanes(const S* p, AllLanes, Acc<S> = 0) {
  return load(p);
}
template <class S>  // a call: the conversions of half types element by element are long
__attribute__((noinline)) Vec<Acc<S>> load_first_lanes(const S* p, int64_t count, Acc<S> fill) {
  return load_n(p, count, fill);
}
template <class S>
PF_INLINE Vec<Acc<S>> load_lanes(const S* p, FirstLanes lanes, Acc<S> fill = 0) {
  if constexpr (sizeof(S) == 4) return load_n(p, lanes.count, fill);
  return load_first_lanes(p, lanes.count, fill);
}
template <class S>
PF_INLINE void store_lanes(S* p, Vec<Acc<S>> x, AllLanes) {
  store(p, x);
}
template <class S>
__attribute__((noinline)) void store_first_lanes(S* p, Vec<Acc<S>> x, int64_t count) {
  store_n(p, x, count);
}
template <class S>
PF_INLINE void store_lanes(S* p, Vec<Acc<S>> x, FirstLanes lanes) {
  if constexpr (sizeof(S) == 4) return store_n(p, x, lanes.count);
  store_first_lanes(p, x, lanes.count);
}

// ---- pairs: a[i], b[i] are p[2 i], p[2 i + 1]
// ------------------------------------------------------------------------
template <int kFirst>
struct EverySecond {
  static constexpr int lane(int i) { return 2 * i + kFirst; }
};
template <int kFirst, int kCount>
struct InTurn {
  static constexpr int lane(int i) { return kFirst + i / 2 + (i % 2 ? kCount : 0); }
};

template <class S>
PF_INLINE void load_pairs(const S* p, AllLanes, Vec<Acc<S>>& a, Vec<Acc<S>>& b) {
  const Vec<Acc<S>> low = load(p), high = load(p + kLanes<Acc<S>>);
  a = shuffle<EverySecond<0>>(low, high);
  b = shuffle<EverySecond<1>>(low, high);
}
template <class S>
PF_INLINE void load_pairs(const S* p, FirstLanes lanes, Vec<Acc<S>>& a, Vec<Acc<S>>& b) {
  constexpr int64_t kAll = kLanes<Acc<S>>;
  const int64_t count = 2 * lanes.count;
  Vec<Acc<S>> low = load_lanes(p, FirstLanes{min_of(count, kAll)}), high = {};
  if (count > kAll) high = load_lanes(p + kAll, FirstLanes{count - kAll});
  a = shuffle<EverySecond<0>>(low, high);
  b = shuffle<EverySecond<1>>(low, high);
}
template <class S>
PF_INLINE void store_pairs(S* p, Vec<Acc<S>> a, Vec<Acc<S>> b, AllLanes) {
  constexpr int kAll = kLanes<Acc<S>>;
  store(p, shuffle<InTurn<0, kAll>>(a, b));
  store(p + kAll, shuffle<InTurn<kAll / 2, kAll>>(a, b));
}
template <class S>
PF_INLINE void store_pairs(S* p, Vec<Acc<S>> a, Vec<Acc<S>> b, FirstLanes lanes) {
  constexpr int kAll = kLanes<Acc<S>>;
  const int64_t count = 2 * lanes.count;
  store_lanes(p, shuffle<InTurn<0, kAll>>(a, b), FirstLanes{min_of(count, kAll)});
  if (count > kAll) store_lanes(p + kAll, shuffle<InTurn<kAll / 2, kAll>>(a, b), FirstLanes{count - kAll});
}

// ---- elements any number apart ------------------------------------------------------------------------------------
template <class S, class Lanes>
PF_INLINE Vec<Acc<S>> load_apart(const S* p, int64_t stride, Lanes lanes) {
  constexpr int kAll = kLanes<Acc<S>>;
  Acc<S> buffer[kAll] __attribute__((aligned(64))) = {};
  for (int64_t i = 0; i < lanes.most(kAll); i++) buffer[i] = get(p + i * stride);
  return *(const Vec<Acc<S>>*)buffer;
}
template <class S, class Lanes>
PF_INLINE void store_apart(S* p, int64_t stride, Vec<Acc<S>> x, Lanes lanes) {
  constexpr int kAll = kLanes<Acc<S>>;
  Acc<S> buffer[kAll] __attribute__((aligned(64)));
  *(Vec<Acc<S>>*)buffer = x;
  for (int64_t i = 0; i < lanes.most(kAll); i++) put(p + i * stride, buffer[i]);
}

// ---- indices: as many, and as wide, as the values beside them
// --------------------------------------------------------
template <class T>
using Places = typename VecOf<T>::mask;  // vi beside vf, vl beside vd

template <class T>
PF_INLINE Places<T> splat_place(int64_t i) {
  return Places<T>{} + (decltype(Places<T>{}[0] + 0))i;
}
// first, first + step, ...
template <class T>
PF_INLINE Places<T> places_from(int64_t first, int64_t step) {
  typedef decltype(Places<T>{}[0] + 0) P;
  Places<T> lane;
  for (int i = 0; i < kLanes<T>; i++) lane[i] = (P)i;
  return lane * (P)step + (P)first;
}

// I: what memory holds, int32_t or int64_t.
template <class T, class I>
PF_INLINE Places<T> load_places(const I* p, AllLanes) {
  typedef I stored __attribute__((vector_size(sizeof(I) * kLanes<T>), aligned(1), may_alias));
  return __builtin_convertvector(*(const stored*)p, Places<T>);
}
template <class T, class I>
PF_INLINE Places<T> load_places(const I* p, FirstLanes lanes) {
  if constexpr (sizeof(I) == 4 && sizeof(T) == 4) return (Places<T>)load_n((const float*)p, lanes.count);
  Places<T> x = {};
  for (int i = 0; i < lanes.count; i++) x[i] = p[i];
  return x;
}
template <class T, class I>
PF_INLINE void store_places(I* p, Places<T> x, AllLanes) {
  typedef I stored __attribute__((vector_size(sizeof(I) * kLanes<T>), may_alias));
  const stored wide = __builtin_convertvector(x, stored);
  memcpy(p, &wide, sizeof(wide));
}
template <class T, class I>
PF_INLINE void store_places(I* p, Places<T> x, FirstLanes lanes) {
  if constexpr (sizeof(I) == 4 && sizeof(T) == 4) return store_n((float*)p, (vf)x, lanes.count);
  for (int i = 0; i < lanes.count; i++) p[i] = x[i];
}

// body(begin, lanes) over [begin, end), a vector at a time.
template <class T, class Body>
PF_INLINE void for_lanes(int64_t begin, int64_t end, Body body) {
  int64_t i = begin;
  for (; i + kLanes<T> <= end; i += kLanes<T>) body(i, AllLanes{});
  if (i < end) body(i, FirstLanes{end - i});
}

}  // namespace

}  // namespace PF_ISA::pool
