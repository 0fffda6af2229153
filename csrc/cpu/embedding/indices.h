// Indices as the kernels read them.
#pragma once
#include "../../common/embedding.h"
#include "../simd/vec.h"

namespace PF_ISA::embedding {

namespace {

constexpr int64_t kAhead = 8;  // rows that are asked for before they are read: prefetchers do not follow indices

template <class F>
PF_INLINE void for_index_type(IndexType type, F f) {
  type == IndexType::i64 ? f(int64_t{}) : f(int32_t{});
}

PF_INLINE bool is_row(int64_t index, int64_t rows) { return (uint64_t)index < (uint64_t)rows; }

PF_INLINE void note_wrong(int64_t* wrong, int64_t place) { __atomic_store_n(wrong, place, __ATOMIC_RELAXED); }

}  // namespace

}  // namespace PF_ISA::embedding
