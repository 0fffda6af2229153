// What a CUDA kernel of ours includes, and all that it includes of CUDA. Under nvcc this is CUDA; under a C++ compiler
// the same source runs on the CPU, thread by thread, and is watched (host/runtime.h). docs/cuda-on-host.md says how to
// write for both.
//
// A kernel is a class: `struct Scale : Kernel<256> { __device__ void operator()(const float* x, float* y) const { ... }
// };` launched as `launch<Scale>({blocks}, 0, stream, x, y)`. Beside CUDA's own names there are
//   PF_SHARED(float, sums, 32);               an array of the block
//   PF_DYNAMIC_SHARED(float, tile);           what the launch gives
//   PF_APART float slow(float x) { ... }      a function that is called: what is large, and inlined in many kernels
//   as_vector<float4>(address)                several elements at once, where they are aligned
//   copy_async<16>(to, from, is_inside)       cp.async, zeros where not; commit_async(), wait_async<N>()
//   load_matrices<4>(registers, row)          ldmatrix; load_matrices_transposed
//   multiply_add<bf16>(sums, a, b)            mma.m16n8k16, of tf32 m16n8k8
//   pair_of<bf16>(low, high), exp2_approx(x)  two numbers in a register; ex2.approx
//   load_acquire, add_release                 flags of other blocks; spin on nothing else
//   GridBarrier                               all blocks of launch_cooperative
#pragma once
#include <stdint.h>

#include "../common/dtype.h"

#ifdef __CUDACC__
#include "device.h"
#else
#include "host/names.h"
#endif

namespace pf::cuda {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// All blocks of a cooperative launch wait for one another. `arrived` is in global memory, zero before the launch.
struct GridBarrier {
  uint32_t* arrived;
  uint32_t target = 0;

  __device__ void operator()() {
    __syncthreads();
    if (threadIdx.x == 0) {
      target += gridDim.x * gridDim.y * gridDim.z;
      add_release(arrived, 1);
      while (load_acquire(arrived) < target) {
      }
    }
    __syncthreads();
  }
};

// Of the lanes of a warp, each of them having it.
template <class T, class Combine>
__device__ T over_warp(T value, Combine combine) {
  PF_UNROLL_ALL
  for (int apart = kWarp / 2; apart > 0; apart /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, apart));
  return value;
}

}  // namespace pf::cuda
