// The threads that compute one row of a matrix together, or one column, and what each of them holds of it.
//
// A team has kLanes threads; the block has kTeams of them. Chunk by chunk the elements of a row go to the lanes in
// turn, so that neighbours read what is adjacent.
#pragma once
#include "values.h"

namespace pf::cuda {

// A warp, which needs no barrier, or a block.
template <int kSize>
struct RowTeam {
  static_assert(kSize % kWarp == 0, "whole warps");
  static constexpr int kLanes = kSize, kThreads = kSize < 128 ? 128 : kSize, kTeams = kThreads / kSize;

  static __device__ int lane() { return (int)threadIdx.x % kLanes; }
  static __device__ int team() { return (int)threadIdx.x / kLanes; }

  // The values of all lanes combined, for each of them, in an order that never changes.
  template <class V, class Combine>
  static __device__ V over(V value, Combine combine) {
    value = over_warp(value, combine);
    if constexpr (kLanes > kWarp) {
      PF_SHARED(V, of_warps, kLanes / kWarp);
      if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
      __syncthreads();
      value = of_warps[0];
      PF_UNROLL_ALL
      for (int i = 1; i < kLanes / kWarp; i++) value = combine(value, of_warps[i]);
      __syncthreads();  // it is written again
    }
    return value;
  }
};

// 32 columns side by side, 8 threads each: those of a warp read adjacent elements of one row.
struct ColumnTeam {
  static constexpr int kLanes = 8, kTeams = kWarp, kThreads = kLanes * kTeams;

  static __device__ int lane() { return (int)threadIdx.x / kTeams; }
  static __device__ int team() { return (int)threadIdx.x % kTeams; }

  // All threads of the block must come, also those without a column.
  template <class V, class Combine>
  static __device__ V over(V value, Combine combine) {
    PF_SHARED(V, of_lanes, kThreads);
    of_lanes[threadIdx.x] = value;
    __syncthreads();
    value = of_lanes[team()];
    PF_UNROLL_ALL
    for (int i = 1; i < kLanes; i++) value = combine(value, of_lanes[i * kTeams + team()]);
    __syncthreads();  // it is written again
    return value;
  }
};

struct Add {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a + b;
  }
};
struct Larger {
  template <class V>
  __device__ V operator()(V a, V b) const {
    return a < b ? b : a;
  }
};

// A lane's share of the n elements of a row: kSteps chunks of kChunk, of kTensors tensors, in registers; or with a
// kSteps of 0 nothing, and what is asked for is read again, from a cache as it may be.
template <class V, class Team, int kSteps, int kChunk, int kTensors = 1>
struct Share {
  typedef V Values[kTensors][kChunk];
  Values held[kSteps ? kSteps : 1];

  static __device__ int64_t first(int step) { return ((int64_t)step * Team::kLanes + Team::lane()) * kChunk; }

  // read(values, first) reads the chunk that begins at element `first`.
  template <class Read>
  __device__ __forceinline__ void hold(int64_t n, Read read) {
    if constexpr (kSteps > 0) {
      PF_UNROLL_ALL
      for (int step = 0; step < kSteps; step++)
        if (first(step) < n) read(held[step], first(step));
    }
  }
  // visit(values, first), of every chunk.
  template <class Read, class Visit>
  __device__ __forceinline__ void each(int64_t n, Read read, Visit visit) {
    if constexpr (kSteps > 0) {
      PF_UNROLL_ALL
      for (int step = 0; step < kSteps; step++)
        if (first(step) < n) visit(held[step], first(step));
    } else {
      for (int64_t at = first(0); at < n; at += Team::kLanes * kChunk) {
        Values values;
        read(values, at);
        visit(values, at);
      }
    }
  }
};

// Elements that a lane holds of each tensor: registers for 32 numbers, of two tensors for 64.
template <class T>
constexpr int kHeld = sizeof(T) == 8 ? 16 : 32;
constexpr int kBlockLanes = 256;

// Calls f(team, steps as a std::integral_constant) with who shares rows of n elements: a warp, a block, or a block that
// reads them again.
template <int kValue>
struct Number {
  static constexpr int value = kValue;
};
template <class T, int kChunk, class F>
Status for_row_team(int64_t n, F f) {
  if (n <= kWarp * kHeld<T>) return f(RowTeam<kWarp>(), Number<kHeld<T> / kChunk>());
  if (n <= kBlockLanes * kHeld<T>) return f(RowTeam<kBlockLanes>(), Number<kHeld<T> / kChunk>());
  return f(RowTeam<kBlockLanes>(), Number<0>());
}

}  // namespace pf::cuda
