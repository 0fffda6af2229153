// Random numbers of the elements of a tile, from dropout's words (common/pointwise.h): what is dropped, and slopes.
#pragma once
#include "dropout.h"
#include "tile.h"

namespace PF_ISA::pointwise {

namespace {

static_assert(kTile % kDropoutBlock == 0, "a tile begins with a block");

// body(i, word) for elements i of a tile, a vector of words each; count is rounded up to whole blocks.
template <class Body>
PF_INLINE void for_words(const int64_t* seed, int64_t first, int64_t count, Body body) {
  const uint32_t key0 = (uint32_t)*seed, key1 = (uint32_t)((uint64_t)*seed >> 32);
  for (int64_t i = 0; i < count; i += kDropoutBlock) {
    vu words[kDropoutBlock / kF32];
    dropout_words((first + i) / kDropoutBlock, key0, key1, words);
    PF_UNROLL
    for (int v = 0; v < kDropoutBlock / kF32; v++) body(i + v * kF32, words[v]);
  }
}

// z = kept ? scale : 0
__attribute__((noinline)) void keep(const int64_t* seed, uint32_t drop_below, double scale, int64_t first,
                                    int64_t count, float* z) {
  const vf kept = splat<vf>((float)scale);
  for_words(seed, first, count, [&](int64_t i, vu word) { store(z + i, select(word >= drop_below, kept, vf{})); });
}
__attribute__((noinline)) void keep(const int64_t* seed, uint32_t drop_below, double scale, int64_t first,
                                    int64_t count, double* z) {
  for_words(seed, first, count, [&](int64_t i, vu word) {
    for (int lane = 0; lane < kF32; lane++) z[i + lane] = word[lane] >= drop_below ? scale : 0.0;
  });
}

// z = lower + (upper - lower) u, u in [0, 1)
__attribute__((noinline)) void draw(const int64_t* seed, double lower, double upper, int64_t first, int64_t count,
                                    float* z) {
  const vf from = splat<vf>((float)lower), width = splat<vf>((float)((upper - lower) * 0x1p-24));
  for_words(seed, first, count,
            [&](int64_t i, vu word) { store(z + i, from + width * __builtin_convertvector((vi)(word >> 8), vf)); });
}
__attribute__((noinline)) void draw(const int64_t* seed, double lower, double upper, int64_t first, int64_t count,
                                    double* z) {
  const double width = (upper - lower) * 0x1p-24;
  for_words(seed, first, count, [&](int64_t i, vu word) {
    for (int lane = 0; lane < kF32; lane++) z[i + lane] = lower + width * (double)(word[lane] >> 8);
  });
}

}  // namespace

}  // namespace PF_ISA::pointwise
