// Dropout: y = x * (keep ? scale : 0), the mask drawn where it is used. The backward is the same kernel on dy.
#pragma once
#include "../../common/pointwise.h"
#include "../core/memory.h"
#include "../core/parallel.h"
#include "../simd/philox.h"

namespace PF_ISA::pointwise {

namespace {

constexpr int kDropoutBlock = 64;  // elements of 16 counters: part of the contract (common/pointwise.h)
static_assert(kDropoutBlock == 64 && 16 % kF32 == 0, "16 counters of four words, whole vectors of counters");

// The 64 words of one block, in element order; vectors narrower than 16 lanes take several counters' worth.
PF_INLINE void dropout_words(int64_t block, uint32_t key0, uint32_t key1, vu words[kDropoutBlock / kF32]) {
  constexpr int parts = 16 / kF32;
  uint64_t counter = (uint64_t)block * 16;
  PF_UNROLL
  for (int part = 0; part < parts; part++) {
    vu out[4];
    vu low = lane_numbers() + (uint32_t)counter + (uint32_t)(part * kF32);  // never carries: 16 divides counter
    philox4x32(low, vu{} + (uint32_t)(counter >> 32), vu{}, vu{}, key0, key1, out);
    PF_UNROLL
    for (int w = 0; w < 4; w++) words[w * parts + part] = out[w];
  }
}

template <bool kStream, class S>
PF_INLINE void dropout_block(const S* x, S* y, const vu* words, uint32_t drop_below, double scale) {
  PF_UNROLL
  for (int v = 0; v < kDropoutBlock / kF32; v++) {
    vf factor = select(words[v] >= drop_below, splat<vf>((float)scale), vf{});
    vf result = load(x + v * kF32) * factor;
    if constexpr (kStream)
      store_stream(y + v * kF32, result);
    else
      store(y + v * kF32, result);
  }
}
template <bool>
PF_INLINE void dropout_block(const double* x, double* y, const vu* words, uint32_t drop_below, double scale) {
  uint32_t word[kDropoutBlock] __attribute__((aligned(64)));
  memcpy(word, words, sizeof word);
  for (int i = 0; i < kDropoutBlock; i++) y[i] = x[i] * (word[i] >= drop_below ? scale : 0.0);
}

template <class S, bool kStream>
void dropout_blocks(const Dropout& p, int64_t begin, int64_t end) {
  uint32_t key0 = (uint32_t)*p.seed, key1 = (uint32_t)((uint64_t)*p.seed >> 32), drop_below = p.drop_below;
  double scale = p.keep_scale;
  const S* x = (const S*)p.x;
  S* y = (S*)p.y;
  for (int64_t block = begin; block < end; block++) {
    vu words[kDropoutBlock / kF32];
    dropout_words(block, key0, key1, words);
    int64_t first = block * kDropoutBlock, left = p.n - first;
    if (left >= kDropoutBlock) {
      dropout_block<kStream>(x + first, y + first, words, drop_below, scale);
    } else {
      S in[kDropoutBlock] = {}, out[kDropoutBlock];
      memcpy(in, x + first, left * sizeof(S));
      dropout_block<false>(in, out, words, drop_below, scale);
      memcpy(y + first, out, left * sizeof(S));
    }
  }
  if (kStream) stream_fence();
}

}  // namespace

void dropout(const Dropout& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    bool is_streamed = p.n * 2 * (int64_t)sizeof(S) >= kStreamBytes && (uintptr_t)p.y % PF_VECTOR_BYTES == 0;
    parallel_ranges(ceil_div(p.n, kDropoutBlock), kElementwiseGrain / kDropoutBlock, num_threads,
                    [&](int64_t begin, int64_t end) {
                      if constexpr (sizeof(S) == 4)
                        if (is_streamed) return dropout_blocks<S, true>(p, begin, end);
                      dropout_blocks<S, false>(p, begin, end);
                    });
  });
}

void philox_words(const PhiloxWords& p, int) {
  for (int64_t i = 0; i < p.n; i += kF32) {
    vu c[4], out[4];
    for (int w = 0; w < 4; w++) memcpy(&c[w], p.counters + w * p.n + i, sizeof(vu));
    philox4x32(c[0], c[1], c[2], c[3], p.key0, p.key1, out);
    for (int w = 0; w < 4; w++) memcpy(p.words + w * p.n + i, &out[w], sizeof(vu));
  }
}

}  // namespace PF_ISA::pointwise
