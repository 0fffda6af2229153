// The same kernels for nvcc, which sees in them that the facade's two halves offer the same names.
#include "kernels.h"

namespace {
template <class K, class... Args>
Status compiled(Args... args) {
  int blocks = 0;
  const Status status = resident_blocks<K, Args...>(0, &blocks);
  return status.error ? status : launch_cooperative<K>(dim3(blocks), 0, Stream(), args...);
}
}  // namespace

Status row_sums(const float* x, float* sums) {
  const Status status = launch<RowSums<Mistake::none>>(dim3(3), 0, Stream(), x, sums, 300);
  return status.error ? status : launch<Votes>(dim3(1), 0, Stream(), sums);
}
Status product(const bf16* a, const bf16* b, float* c) { return compiled<Product<bf16, Slip::none>>(a, b, c, 96); }
Status product(const f16* a, const f16* b, float* c) { return compiled<Product<f16, Slip::none>>(a, b, c, 96); }
Status small_product(const f16* b, const float* a, float* c) {
  const Status status = compiled<Transposed<true>>(b, a, c);
  return status.error ? status : compiled<InTf32>(b, a, c);
}
Status rotate(float* state, uint32_t* flags) {
  const Status status = compiled<Rotate<Lapse::none>>(state, flags, 5);
  return status.error ? status : compiled<PassOn<Lapse::none>>(state, flags, 0);
}
