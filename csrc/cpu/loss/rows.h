// The table of elementwise losses (tools/generate.py), and what its expressions are made of.
#pragma once
#include "../../common/losses.h"
#include "../simd/math.h"

#define PF_MEMBER inline __attribute__((always_inline))

namespace PF_ISA::loss {

namespace {

// log(x) of any x: of a subnormal one, as sigmoid leaves them, and NaN of a negative one.
PF_INLINE vf log_of_any(vf x) {
  const auto is_small = x < 1.17549435e-38f;
  const vf y = log(select(is_small, x * 18446744073709551616.0f, x));  // 2^64
  return select(x < 0.0f, vf{} + __builtin_nanf(""), select(is_small, y - 44.3614195558364998f, y));
}
PF_INLINE vd log_of_any(vd x) { return log(x); }

// log(1 - x): the quotient undoes the rounding of 1 - x (Kahan).
template <class V>
PF_INLINE V log_complement(V x) {
  const V u = constant<V>(1) - x, d = u - constant<V>(1);
  return select(d == V{}, -x, log_of_any(u) * (-x / d));
}
PF_INLINE vd log_complement(vd x) {
  return each_lane(x, [](double v) { return ::log1p(-v); });
}

template <class V>
PF_INLINE V at_least(V x, V low) {
  return select(x < low, low, x);
}

template <class V>
PF_INLINE V probability(V x) {
  return select((x >= V{}) & (x <= constant<V>(1)), x, constant<V>(__builtin_nan("")));
}

#include "../../common/losses.inc"

}  // namespace

}  // namespace PF_ISA::loss
