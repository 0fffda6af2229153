// See common/peak.h. Twelve independent chains: more than latency times ports on any processor of today.
void fma_peak(const FmaPeak& p, int num_threads) {
  constexpr int chains = 12;
  float sum = 0;
#pragma omp parallel num_threads(num_threads) reduction(+ : sum)
  {
    vf acc[chains], a = splat<vf>(0.999f), b = splat<vf>(0.5f);
    PF_UNROLL
    for (int i = 0; i < chains; i++) acc[i] = splat<vf>((float)i);
    for (int64_t k = 0; k < p.iterations; k++) {
      PF_UNROLL
      for (int i = 0; i < chains; i++) acc[i] = fma(acc[i], a, b);
    }
    PF_UNROLL
    for (int i = 0; i < chains; i++) sum += reduce_add(acc[i]);
  }
  *p.sink = sum;
  *p.flops = 2.0 * chains * kF32 * (double)p.iterations * num_threads;
}
