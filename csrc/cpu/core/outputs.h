// Parts of a row of outputs, past the caches where it is asked and can be.
#pragma once
#include "columns.h"
#include "memory.h"

namespace PF_ISA {

namespace {

template <class S>
PF_INLINE void store_output(S* p, Vec<Acc<S>> x, WholeVector whole, bool is_streamed) {
  if constexpr (sizeof(S) == 4)
    if (is_streamed) return store_stream(p, x);
  store_part(p, x, whole);
}
template <class S>
PF_INLINE void store_output(S* p, Vec<Acc<S>> x, int64_t count, bool) {
  store_part(p, x, count);
}

// Do outputs go past the caches? Only whole aligned vectors of float do.
template <class To>
PF_INLINE bool is_streamed(const void* out, int64_t bytes, int64_t width) {
  return sizeof(To) == 4 && bytes >= kStreamBytes && width % kLanes<float> == 0 &&
         (uintptr_t)out % PF_VECTOR_BYTES == 0;
}

}  // namespace

}  // namespace PF_ISA
