// Exchanging lanes between registers: transposition, and sums of each row. GCC before 12 has no
// __builtin_shufflevector, clang no __builtin_shuffle.
#pragma once
#include "vec.h"

namespace PF_ISA {

template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct FirstIndices : FirstIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct FirstIndices<0, kIndex...> {
  typedef Indices<kIndex...> type;
};

template <class V>
constexpr int kLanesOf = sizeof(V) / sizeof(V{}[0]);

template <class From, class V, int... kIndex>
PF_INLINE V shuffle(V a, V b, Indices<kIndex...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, From::lane(kIndex)...);
#else
  const decltype(a == b) index = {From::lane(kIndex)...};
  return __builtin_shuffle(a, b, index);
#endif
}
// Lane i of the result is lane From::lane(i) of a and b one after the other.
template <class From, class V>
PF_INLINE V shuffle(V a, V b) {
  return shuffle<From>(a, b, typename FirstIndices<kLanesOf<V>>::type{});
}

// In blocks of kStep lanes: the even ones of a, each with the one before it in b; the odd ones of b, each with the one
// after it in a.
template <int kStep, int kCount>
struct EvenBlocks {
  static constexpr int lane(int i) { return i & kStep ? kCount + i - kStep : i; }
};
template <int kStep, int kCount>
struct OddBlocks {
  static constexpr int lane(int i) { return i & kStep ? kCount + i : i + kStep; }
};

// Exchanges the odd blocks of a with the even ones of b, which are off the diagonal of a square whose rows a and b are
// kStep apart.
template <int kStep, class V>
PF_INLINE void exchange(V& a, V& b) {
  const V x = shuffle<EvenBlocks<kStep, kLanesOf<V>>>(a, b), y = shuffle<OddBlocks<kStep, kLanesOf<V>>>(a, b);
  a = x;
  b = y;
}

// rows[i][j] <-> rows[j][i], in log2(lanes) rounds with ever larger blocks.
template <int kStep = 1, class V, int kCount>
PF_INLINE void transpose(V (&rows)[kCount]) {
  static_assert(kCount == kLanesOf<V>, "a square");
  if constexpr (kStep < kCount) {
    PF_UNROLL
    for (int i = 0; i < kCount; i++)
      if (!(i & kStep)) exchange<kStep>(rows[i], rows[i + kStep]);
    transpose<kStep * 2>(rows);
  }
}

// The same as a call, where transposing is rare.
template <class V, int kCount>
__attribute__((noinline)) void transpose_in_memory(V (&rows)[kCount]) {
  transpose(rows);
}

// Lane i of the result is the sum of rows[i]: neighbours are added as they change places.
template <int kStep = 1, class V, int kCount>
PF_INLINE V sum_each_row(V (&rows)[kCount]) {
  static_assert(kCount == kLanesOf<V>, "a square");
  if constexpr (kStep == kCount) {
    return rows[0];
  } else {
    PF_UNROLL
    for (int i = 0; i < kCount; i += 2 * kStep) {
      exchange<kStep>(rows[i], rows[i + kStep]);
      rows[i] = rows[i] + rows[i + kStep];
    }
    return sum_each_row<kStep * 2>(rows);
  }
}

}  // namespace PF_ISA
