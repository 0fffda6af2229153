// What matrix products multiply: the arithmetic type itself or, where the instruction set multiplies pairs of bf16
// (PF_HAS_BF16_DOT), two of them side by side in 32 bits, whose products are both added to one float. So a vector of
// pairs has the lanes of a vector of float, and a product over pairs is half as deep.
#pragma once
#include "transpose.h"
#include "vec.h"

namespace PF_ISA {

struct bf16_pair {
  uint32_t bits;
};
template <>
struct VecOf<bf16_pair> {
  typedef vu type;
  typedef vi mask;
};
template <>
struct ElementOf<vu> {
  typedef bf16_pair type;
};
typedef vu vu_unaligned __attribute__((aligned(1), may_alias));

template <class S>
struct OperandOf {
  typedef Acc<S> type;
};
#ifdef PF_HAS_BF16_DOT
template <>
struct OperandOf<bf16> {
  typedef bf16_pair type;
};
#endif
template <class S>
using Operand = typename OperandOf<S>::type;

// Terms of a sum in one operand.
template <class T>
constexpr int kTerms = 1;
template <>
inline constexpr int kTerms<bf16_pair> = 2;  // inline: a specialisation is not local to its file

// The type of one term: a row of these, as long as a multiple of kTerms, is a row of operands.
template <class T>
struct TermOf {
  typedef T type;
};
template <>
struct TermOf<bf16_pair> {
  typedef bf16 type;
};
template <class T>
using Term = typename TermOf<T>::type;

PF_INLINE vf broadcast(const float* p) { return splat<vf>(*p); }
PF_INLINE vd broadcast(const double* p) { return splat<vd>(*p); }
PF_INLINE vu broadcast(const bf16_pair* p) {
  uint32_t bits;
  memcpy(&bits, p, 4);  // rows of bf16 begin at any even address
  return vu{} + bits;
}

PF_INLINE vf multiply_add(vf a, vf b, vf c) { return fma(a, b, c); }
PF_INLINE vd multiply_add(vd a, vd b, vd c) { return fma(a, b, c); }

// A factor that belongs to the sum goes into an operand where that is exact enough: not into bf16.
PF_INLINE vf scale_operand(vf x, float scale) { return x * scale; }
PF_INLINE vd scale_operand(vd x, double scale) { return x * scale; }
PF_INLINE vu scale_operand(vu x, float) { return x; }

PF_INLINE vu load(const bf16_pair* p) { return *(const vu_unaligned*)p; }
PF_INLINE void store(bf16_pair* p, vu x) { *(vu_unaligned*)p = x; }
PF_INLINE void store_n(bf16_pair* p, vu x, int64_t count) { store_n((float*)p, (vf)x, count); }

// Operands of the elements from p on, which are adjacent.
template <class T, class S>
PF_INLINE Vec<T> load_operands(const S* p) {
  if constexpr (kTerms<T> == 1)
    return load(p);
  else
    return load((const T*)p);
}
// Element i of the result holds element i of each term.
PF_INLINE vf join_terms(const vf (&x)[1]) { return x[0]; }
PF_INLINE vd join_terms(const vd (&x)[1]) { return x[0]; }
// The same of bf16 values, as float.
PF_INLINE vu join_exact(vf even, vf odd) { return (vu)even >> 16 | ((vu)odd & 0xffff0000u); }

// A row of a tile, as operands of a product over its columns.
template <class A, int kVectors, class V>
PF_INLINE void store_adjacent(A* to, const V (&x)[kVectors]) {
  PF_UNROLL
  for (int j = 0; j < kVectors; j++) store(to + j * kLanes<A>, x[j]);
}

#ifdef PF_HAS_BF16_DOT
#include "vec_avx512_bf16.h"
#endif

// ---- operands of a product over k from matrices of any strides; terms that are not there are zero ------------------
// The first `count` elements of a row along k.
template <class T, class S>
PF_INLINE Vec<T> load_operands_n(const S* p, int64_t count) {
  if constexpr (kTerms<T> == 1)
    return load_n(p, count);
  else
    return count >= kTerms<T> * kLanes<T> ? load_terms(p) : load_first_terms(p, (int)count);
}
// Of a row across k, `lanes` columns of it, and the row after it, `stride` further, where two `terms` are left.
template <class T, class S>
PF_INLINE Vec<T> load_joined_n(const S* p, int64_t stride, int64_t terms, int64_t lanes) {
  if constexpr (kTerms<T> == 1)
    return load_n(p, lanes);
  else
    return join_rows(p, terms > 1 ? p + stride : nullptr, lanes);
}
// One operand.
template <class T, class S>
PF_INLINE T get_operand(const S* p, int64_t stride, int64_t terms) {
  if constexpr (kTerms<T> == 1)
    return get(p);
  else
    return get_pair(p, terms > 1 ? p + stride : nullptr);
}

}  // namespace PF_ISA
