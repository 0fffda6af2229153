// What rows and columns share, and the types of a call.
#pragma once
#include "../../common/softmax.h"
#include "../core/outputs.h"
#include "../core/parallel.h"
#include "../core/reductions.h"
#include "../simd/math.h"

namespace PF_ISA::softmax {

namespace {

// Elements summed in the arithmetic type before a sum goes on in double, or in a second sum.
constexpr int64_t kChunk = 1024;

// f(narrow, wide) of two types that are one, or float beside a half type.
template <class F>
PF_INLINE void for_pair(Dtype narrow, Dtype wide, F f) {
  for_dtype(narrow, [&](auto storage) {
    if constexpr (sizeof(storage) == 2)
      if (wide == Dtype::f32) return f(storage, float{});
    f(storage, storage);
  });
}

}  // namespace

}  // namespace PF_ISA::softmax
