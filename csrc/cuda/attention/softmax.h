// The softmax of rows that come tile by tile. Dao et al. 2022, arXiv:2205.14135, algorithm 1; rows are divided at the
// end.
#pragma once
#include "scores.h"

namespace pf::cuda::attention {

// Of the lanes of a row: four.
template <class Combine>
__device__ __forceinline__ float over_row(float value, Combine combine) {
  value = combine(value, __shfl_xor_sync(kAllLanes, value, 1));
  return combine(value, __shfl_xor_sync(kAllLanes, value, 2));
}
struct Sum {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Maximum {  // a NaN is not larger, and shows in the sum
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// A lane's rows: of each of kRowTiles tiles lane / 4 and the eighth below.
template <int kRowTiles>
struct RunningSoftmax {
  float top[kRowTiles][2];  // in the scores' unit
  float sum[kRowTiles][2];  // of this lane's columns; all four lanes' after finish()

  __device__ __forceinline__ RunningSoftmax() {
    PF_UNROLL_ALL
    for (int i = 0; i < 2 * kRowTiles; i++) top[i / 2][i % 2] = -infinity<float>(), sum[i / 2][i % 2] = 0;
  }

  // Scores become weights relative to the new maximum, and what was summed before is brought there.
  template <class Of, int kColumnTiles, int kSums>
  __device__ __forceinline__ void fold(const Of& scores, float (&tile)[kRowTiles][kColumnTiles][4],
                                       float (&sums)[kRowTiles][kSums][4]) {
    PF_UNROLL_ALL
    for (int m = 0; m < kRowTiles; m++) PF_UNROLL_ALL
    for (int half = 0; half < 2; half++) {
      float& largest = top[m][half];
      float here = -infinity<float>();
      PF_UNROLL_ALL
      for (int n = 0; n < kColumnTiles; n++) here = fmaxf(here, fmaxf(tile[m][n][2 * half], tile[m][n][2 * half + 1]));
      const float next = fmaxf(largest, over_row(here, Maximum()) * scores.unit());
      const float base = next == -infinity<float>() ? 0.0f : next;  // nothing seen: else -inf - -inf
      const float by = exp2_approx(scores.in_log2(largest - base));
      largest = next;
      float added = 0;
      PF_UNROLL_ALL
      for (int n = 0; n < kColumnTiles; n++) PF_UNROLL_ALL
      for (int i = 2 * half; i < 2 * half + 2; i++) {
        tile[m][n][i] = exp2_approx(scores.exponent(tile[m][n][i], base));
        added += tile[m][n][i];
      }
      sum[m][half] = fmaf(sum[m][half], by, added);
      PF_UNROLL_ALL
      for (int n = 0; n < kSums; n++) sums[m][n][2 * half] *= by, sums[m][n][2 * half + 1] *= by;
    }
  }

  __device__ __forceinline__ void finish() {
    PF_UNROLL_ALL
    for (int i = 0; i < 2 * kRowTiles; i++) sum[i / 2][i % 2] = over_row(sum[i / 2][i % 2], Sum());
  }
  __device__ __forceinline__ bool is_empty(int m, int half) const { return sum[m][half] == 0; }
  // Of out; rows that saw nothing are zeros.
  __device__ __forceinline__ float inverse(int m, int half) const {
    return is_empty(m, half) ? 0.0f : 1.0f / sum[m][half];
  }
  // In natural units, and what its rounding leaves out.
  template <class Of>
  __device__ __forceinline__ float lse(const Of&, int m, int half, float& low) const {
    low = 0;
    if (is_empty(m, half)) return -infinity<float>();
    const float log_sum = log2f(sum[m][half]);
    if (Of::kPlain) return (top[m][half] + log_sum) * kLn2;
    const float total = top[m][half] + log_sum * kLn2;
    low = (top[m][half] - total) + log_sum * kLn2;
    return total;
  }
};

}  // namespace pf::cuda::attention
