// See FmaPeak in common/core.h. Twelve independent chains: more than latency times ports on any processor of today.
#pragma once
#include "../../common/core.h"
#include "../simd/operand.h"

namespace PF_ISA::core {

namespace {

PF_INLINE vf peak_step(vf sum, vf a, vf b) { return fma(sum, a, b); }  // a b + sum would be one product for all steps
#ifdef PF_HAS_BF16_DOT
PF_INLINE vf peak_step(vf sum, vu a, vu b) { return multiply_add(a, b, sum); }
#endif

template <class T>
void peak_loop(const FmaPeak& p, int num_threads, Vec<T> a, Vec<T> b) {
  constexpr int chains = 12;
  float total = 0;
#pragma omp parallel num_threads(num_threads) reduction(+ : total)
  {
    vf sum[chains];
    PF_UNROLL
    for (int i = 0; i < chains; i++) sum[i] = splat<vf>((float)i);
    for (int64_t k = 0; k < p.iterations; k++) {
      PF_UNROLL
      for (int i = 0; i < chains; i++) sum[i] = peak_step(sum[i], a, b);
    }
    PF_UNROLL
    for (int i = 0; i < chains; i++) total += reduce_add(sum[i]);
  }
  *p.sink = total;
  *p.flops = 2.0 * kTerms<T> * chains * kF32 * (double)p.iterations * num_threads;
}

}  // namespace

void fma_peak(const FmaPeak& p, int num_threads) {
  const vf a = splat<vf>(0.999f), b = splat<vf>(0.5f);
#ifdef PF_HAS_BF16_DOT
  if (p.dtype == Dtype::bf16) return peak_loop<bf16_pair>(p, num_threads, join_exact(b, b), join_exact(b, b));
#endif
  peak_loop<float>(p, num_threads, a, b);
}

}  // namespace PF_ISA::core
