// Elements of a tensor as a thread reads and writes them: several at once, and wider than they are stored.
#pragma once
#include "../facade.h"

namespace pf::cuda {

template <class T>
struct Wide {
  typedef float type;
};
template <>
struct Wide<double> {
  typedef double type;
};
// What elements of type T are computed in.
template <class T>
using Acc = typename Wide<T>::type;

template <class T>
__device__ __forceinline__ Acc<T> widen(T x) {
  if constexpr (sizeof(T) == 8)
    return x;
  else
    return to_float(x);
}
template <class T>
__device__ __forceinline__ T narrow(Acc<T> x) {
  if constexpr (sizeof(T) == 8)
    return x;
  else
    return from_float<T>(x);
}

// How many elements a thread takes at once: 16 bytes, the widest access there is.
template <class T>
constexpr int kChunk = 16 / sizeof(T);

template <class T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Chunk {
  T of[kCount];
};

// kCount elements, of which `left` are inside of the tensor; beyond them `values` gets zeros, and nothing is read or
// written. is_aligned: their address is a multiple of 16 bytes, or of their size where that is less; the same for all
// threads, so that no warp takes both ways.
template <class T, int kCount>
__device__ __forceinline__ void load_values(Acc<T> (&values)[kCount], const T* from, int64_t left, bool is_aligned) {
  if (is_aligned && left >= kCount) {
    const Chunk<T, kCount> chunk = *as_vector<Chunk<T, kCount>>(from);
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++) values[i] = widen(chunk.of[i]);
  } else {
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++) values[i] = i < left ? widen(from[i]) : Acc<T>(0);
  }
}
template <class T, int kCount>
__device__ __forceinline__ void store_values(T* to, const Acc<T> (&values)[kCount], int64_t left, bool is_aligned) {
  if (is_aligned && left >= kCount) {
    Chunk<T, kCount> chunk;
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++) chunk.of[i] = narrow<T>(values[i]);
    *as_vector<Chunk<T, kCount>>(to) = chunk;
  } else {
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++)
      if (i < left) to[i] = narrow<T>(values[i]);
  }
}

// ---- on the host, before a launch

// Does each row, `stride` elements of `size` bytes after the one before, begin at a multiple of 16 bytes?
inline bool is_aligned(const void* rows, int64_t stride = 0, int64_t size = 0) {
  return (uintptr_t)rows % 16 == 0 && stride * size % 16 == 0;
}

// Of a grid; more than a launch takes stay more, and are refused.
inline unsigned blocks_for(int64_t items, int64_t of_each) {
  const int64_t blocks = (items + of_each - 1) / of_each;
  return blocks > 0xffffffff ? 0xffffffffu : (unsigned)blocks;
}

// Calls f with a number of the type.
template <class F>
Status for_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32: return f(float());
    case Dtype::f64: return f(double());
    case Dtype::bf16: return f(bf16());
    default: return f(f16());
  }
}

}  // namespace pf::cuda
