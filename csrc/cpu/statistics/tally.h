// What is counted of a vector of elements.
#pragma once
#include "../../common/statistics.h"
#include "../core/columns.h"
#include "../core/widened.h"

namespace PF_ISA::statistics {

namespace {

template <class T>
struct Tally {
  static constexpr int kHalves = 8 / (int)sizeof(T);
  // int32 of float: a part has fewer than 2^31 vectors of one group, 32 GB of them.
  typedef typename VecOf<T>::mask Count;
  vd sum[kHalves] = {}, squares[kHalves] = {};
  Count zeros = {}, outside = {}, not_finite = {};

  PF_INLINE void add(Tally& t, Vec<T> x, Vec<T> low, Vec<T> high) {
    const Count is_finite = x - x == 0;  // a comparison that holds is -1
    t.zeros -= (Count)(x == 0);
    t.outside -= (Count)((x <= low) | (x >= high));
    t.not_finite -= ~is_finite;
    x = select(is_finite, x, Vec<T>{});
    PF_UNROLL
    for (int half = 0; half < kHalves; half++) {
      const vd wide = widened(x, half);
      t.sum[half] += wide;
      t.squares[half] = fma(wide, wide, t.squares[half]);
    }
  }
};

// One element, past the last whole vector.
template <class T>
PF_INLINE void add_one(double* moments, T x, T low, T high) {
  const bool is_finite = x - x == 0;
  moments[(int)Moment::sum] += is_finite ? (double)x : 0;
  moments[(int)Moment::squares] += is_finite ? (double)x * (double)x : 0;
  moments[(int)Moment::zeros] += x == 0;
  moments[(int)Moment::outside] += x <= low || x >= high;
  moments[(int)Moment::not_finite] += !is_finite;
}

template <class C>
PF_INLINE double total(C counts) {
  double sum = 0;
  for (int i = 0; i < (int)(sizeof(C) / sizeof(counts[0])); i++) sum += (double)counts[i];
  return sum;
}

// All lanes together.
template <class T>
PF_INLINE void add_all(double* moments, const Tally<T>& t) {
  vd sum = t.sum[0], squares = t.squares[0];
  if constexpr (Tally<T>::kHalves == 2) sum += t.sum[1], squares += t.squares[1];
  moments[(int)Moment::sum] += reduce_add(sum);
  moments[(int)Moment::squares] += reduce_add(squares);
  moments[(int)Moment::zeros] += total(t.zeros);
  moments[(int)Moment::outside] += total(t.outside);
  moments[(int)Moment::not_finite] += total(t.not_finite);
}

// Each lane is a group of its own.
template <class T>
PF_INLINE void add_lanes(double* moments, const Tally<T>& t) {
  constexpr int lanes = kLanes<T>, wide = kLanes<double>;
  for (int i = 0; i < lanes; i++, moments += kMoments) {
    moments[(int)Moment::sum] += t.sum[i / wide][i % wide];
    moments[(int)Moment::squares] += t.squares[i / wide][i % wide];
    moments[(int)Moment::zeros] += (double)t.zeros[i];
    moments[(int)Moment::outside] += (double)t.outside[i];
    moments[(int)Moment::not_finite] += (double)t.not_finite[i];
  }
}

}  // namespace

}  // namespace PF_ISA::statistics
