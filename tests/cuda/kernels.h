// Kernels that are right, and copies of them with a mistake each: cases.cpp runs them on the host, nvcc compiles them.
#pragma once
#include "../../csrc/cuda/facade.h"

namespace {

using namespace pf::cuda;

constexpr int kThreads = 128;

// ---- rows[r] = sum of x[r, :], twice: the second round writes over the first one's partial sums.

enum class Mistake {
  none,
  no_barrier,
  no_second_barrier,
  other_barrier,
  leaves_early,
  skips_shuffle,
  outside_of_mask,
  past_shared,
  past_global,
  before_global,
  beside_global,
  much_shared,
  runs_down_the_stack,
  only_half_arrives,
};  // fmt

template <Mistake kMistake>
struct RowSums : Kernel<kThreads> {
  __device__ void operator()(const float* x, float* sums, int columns) const {
    PF_SHARED(float, partial, kThreads / kWarp);
    if constexpr (kMistake == Mistake::much_shared) {
      PF_SHARED(float, large, 13000);
      large[threadIdx.x] = 0;
    }
    if constexpr (kMistake == Mistake::runs_down_the_stack) {
      volatile float local[64 << 10];
      for (int i = (64 << 10) - 1; i >= 0; i--) local[i] = x[0];
    }
    const int warp = (int)threadIdx.x / kWarp, lane = (int)threadIdx.x % kWarp;
    if (kMistake == Mistake::leaves_early && threadIdx.x == 37) return;
    for (int round = 0; round < 2; round++) {
      const float* row = x + (2 * blockIdx.x + round) * columns;
      float sum = 0;
      for (int i = (int)threadIdx.x; i < columns; i += kThreads) sum += row[i];
      if (kMistake == Mistake::skips_shuffle && lane >= 16) {
        sum += __shfl_xor_sync(0xffff0000u, sum, 1);
      } else {
        sum = over_warp(sum, [](float a, float b) { return a + b; });
      }
      if (kMistake == Mistake::outside_of_mask && lane < 16) sum += __shfl_down_sync(0x0000ffffu, sum, 16, 32);
      const int at = kMistake == Mistake::past_shared ? warp + 1 : warp;
      if (lane == 0) partial[at] = sum;
      if (kMistake == Mistake::other_barrier && warp == 1) {
        __syncthreads();
      } else if (kMistake == Mistake::only_half_arrives && warp == 1) {
        __syncwarp();
        while (true) __syncwarp(0xffffffffu << (lane % 2));  // never all of them
      } else if (kMistake != Mistake::no_barrier) {
        __syncthreads();
      }
      float all = 0;
      for (int i = 0; i < kThreads / kWarp; i++) all += partial[i];
      if (threadIdx.x == 0) sums[2 * blockIdx.x + round] = all;
      if (kMistake == Mistake::past_global && threadIdx.x == 0) sums[2 * gridDim.x + 2] = all;
      if (kMistake == Mistake::before_global && threadIdx.x == 0) sums[-1024] = all;
      if (kMistake == Mistake::beside_global && threadIdx.x == 0) sums[-1] = all;
      if (kMistake != Mistake::no_second_barrier) __syncthreads();
    }
  }
};

// ---- c[16 m, 8 n] = a[16 m, k] b[k, 8 n] of bfloat16: a warp a tile, two stages of cp.async.

enum class Slip { none, weak_wait, no_barrier_behind, other_layout, misaligned };

template <class T, Slip kSlip>
struct Product : Kernel<2 * kWarp> {
  static constexpr int kStep = 16, kRows = 32,
                       kPitch = kStep + 8;  // two warps, each 16 rows; a pitch without conflicts

  __device__ void operator()(const T* a, const T* b, float* c, int k) const {
    PF_SHARED(T, a_tile, 2 * kRows * kPitch);
    PF_SHARED(T, b_tile, 2 * 8 * kPitch);
    const int warp = (int)threadIdx.x / kWarp, lane = (int)threadIdx.x % kWarp;
    auto fetch = [&](int stage, int step) {  // 8 elements a copy; b is [8, k]
      const int row = (int)threadIdx.x / 2, column = (int)threadIdx.x % 2 * 8;
      const T* from = a + row * k + step * kStep + column;
      if (kSlip == Slip::misaligned) from++;
      copy_async<16>(&a_tile[(stage * kRows + row) * kPitch + column], from);
      if (row < 8) copy_async<16>(&b_tile[(stage * 8 + row) * kPitch + column], b + row * k + step * kStep + column);
      commit_async();
    };
    float sums[4] = {};
    const int steps = k / kStep;
    fetch(0, 0);
    for (int step = 0; step < steps; step++) {
      if (step + 1 < steps)
        fetch((step + 1) % 2, step + 1);
      else
        commit_async();
      if (kSlip == Slip::weak_wait)
        wait_async<2>();
      else
        wait_async<1>();
      __syncthreads();
      uint32_t of_a[4], of_b[2];
      const T* a_row = &a_tile[(step % 2 * kRows + warp * 16 + lane % 16) * kPitch + lane / 16 * 8];
      const T* b_row = &b_tile[(step % 2 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8];
      load_matrices<4>(of_a, a_row);
      load_matrices<2>(of_b, b_row);
      if (kSlip == Slip::other_layout) {
        const uint32_t kept = of_a[1];
        of_a[1] = of_a[2], of_a[2] = kept;
      }
      multiply_add<T>(sums, of_a, of_b);
      if (kSlip != Slip::no_barrier_behind) __syncthreads();
    }
    for (int i = 0; i < 4; i++) c[(warp * 16 + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
  }
};

// b transposed on its way into registers, and tf32. The tile is written again when all lanes have loaded from it: that
// they came to ldmatrix together orders no memory.
template <bool kWaits>
struct Transposed : Kernel<kWarp> {
  __device__ void operator()(const f16* b, const float* a, float* c) const {  // b[16, 8], a[16, 16], c[16, 8]
    PF_SHARED(f16, tile, 16 * 8);
    const int lane = (int)threadIdx.x;
    for (int i = lane; i < 16 * 8; i += kWarp) tile[i] = b[i];
    __syncwarp();
    uint32_t of_b[2], of_a[4];
    load_matrices_transposed<2>(of_b, tile + lane % 16 * 8);
    if (kWaits) __syncwarp();
    for (int i = lane; i < 16 * 8; i += kWarp) tile[i] = f16();
    for (int r = 0; r < 4; r++) {
      const float* at = a + (lane / 4 + r % 2 * 8) * 16 + lane % 4 * 2 + r / 2 * 8;
      of_a[r] = from_float<f16>(at[0]).bits | (uint32_t)from_float<f16>(at[1]).bits << 16;
    }
    float sums[4] = {};
    multiply_add<f16>(sums, of_a, of_b);
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
  }
};
struct InTf32 : Kernel<kWarp> {
  __device__ void operator()(const f16* b, const float* a, float* c) const {
    const int lane = (int)threadIdx.x;
    float sums[4] = {};
    for (int k = 0; k < 16; k += 8) {
      uint32_t of_a[4], of_b[2];
      for (int r = 0; r < 4; r++)
        of_a[r] = from_float<tf32>(a[(lane / 4 + r % 2 * 8) * 16 + k + lane % 4 + r / 2 * 4]).bits;
      for (int r = 0; r < 2; r++) of_b[r] = from_float<tf32>(to_float(b[(k + lane % 4 + r * 4) * 8 + lane / 4])).bits;
      multiply_add<tf32>(sums, of_a, of_b);
    }
    for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
  }
};
// ---- a state that all blocks pass on to one another: grid barriers, and flags.

enum class Lapse { none, no_grid_barrier, not_cooperative, lost_flag, no_wait };

template <Lapse kLapse>
struct Rotate : Kernel<kWarp> {
  __device__ void operator()(float* state, uint32_t* arrived, int steps) const {  // [2, blocks * 32]
    const int count = (int)gridDim.x * kWarp, own = (int)(blockIdx.x * kWarp + threadIdx.x);
    GridBarrier barrier = {arrived};
    for (int step = 0; step < steps; step++) {
      const float* from = state + step % 2 * count;
      float* to = state + (step + 1) % 2 * count;
      to[own] = from[(own + 1) % count] + 1;
      if (kLapse != Lapse::no_grid_barrier) barrier();
    }
  }
};
template <Lapse kLapse>
struct PassOn : Kernel<kWarp> {
  __device__ void operator()(float* state, uint32_t* flags, int) const {  // block i waits for block i - 1
    const unsigned block = blockIdx.x;
    if (block > 0 && kLapse != Lapse::no_wait) {
      if (threadIdx.x == 0)
        while (load_acquire(flags + block - 1) == 0) {
        }
      __syncwarp();
    }
    const float before = block ? state[(block - 1) * kWarp + threadIdx.x] : 0;
    state[block * kWarp + threadIdx.x] = before + 1;
    __syncwarp();
    if (threadIdx.x == 0 && !(kLapse == Lapse::lost_flag && block == 1)) add_release(flags + block, 1);
  }
};
// ---- votes and the other shuffles; numbers

struct Votes : Kernel<kWarp> {
  __device__ void operator()(float* out) const {
    const int lane = (int)threadIdx.x;
    out[lane] = (float)__shfl_up_sync(kAllLanes, lane, 3);
    out[32 + lane] = (float)__shfl_down_sync(kAllLanes, lane, 5, 16);
    out[64 + lane] = (float)__shfl_sync(kAllLanes, lane, 9, 8);
    out[96 + lane] = (float)__ballot_sync(kAllLanes, lane < 5);
    out[128 + lane] = (float)(__any_sync(kAllLanes, lane == 7) + 2 * __all_sync(kAllLanes, lane < 31));
    out[160 + lane] = (float)(__syncthreads_count(lane % 4 == 0) + 100 * __syncthreads_or(lane == 99));
  }
};
struct Nothing : Kernel<kThreads> {
  __device__ void operator()(int) const {}
};
struct Wide : Kernel<1056> {
  __device__ void operator()(int) const {}
};
struct Crowded : Kernel<512, 8> {
  __device__ void operator()(int) const {}
};
}  // namespace
