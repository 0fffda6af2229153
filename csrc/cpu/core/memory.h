// Memory: a workspace cut into pieces, and what is asked for ahead of its use.
#pragma once
#include "../simd/vec.h"

namespace PF_ISA {

// Bytes handed out from one block of memory, 64 at a time; with a null block it only counts.
struct Carver {
  char* at;
  int64_t used;
  template <class T>
  T* take(int64_t count) {
    T* here = (T*)(at + used);
    used += round_up(count * (int64_t)sizeof(T), 64);
    return here;
  }
};

template <class T>
constexpr int64_t kLine = 64 / (int64_t)sizeof(T);  // elements of a cache line

// Asks for `rows` rows of `count` elements.
template <class T>
PF_INLINE void prefetch_rows(const T* p, int64_t stride, int64_t rows, int64_t count) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t e = 0; e < count; e += kLine<T>) __builtin_prefetch(p + r * stride + e);
}

// Asks for one row, into the second-level cache.
template <class T>
PF_INLINE void prefetch_far(const T* p, int64_t count) {
  for (int64_t e = 0; e < count; e += kLine<T>) __builtin_prefetch(p + e, 0, 2);
}

// From how many bytes of inputs and outputs together store_stream pays: it saves reading what will be overwritten, a
// third of the traffic, where caches could not keep the outputs for their reader anyway.
constexpr int64_t kStreamBytes = 32 << 20;

}  // namespace PF_ISA
