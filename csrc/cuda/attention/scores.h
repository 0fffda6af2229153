// What a product q.k goes through before exp2: scale, softcap, ALiBi, masks, windows; and dropout behind it.
//
// Plain scores, which have a positive scale and nothing else, are exp2's argument after one multiply-add. The others
// (kIsPlain false) are in natural units, as their row's maximum and lse are: an added mask may be -1e9, from which the
// maximum is subtracted before anything is multiplied, and lse has a low part.
#pragma once
#include "../core/math.h"
#include "../core/philox.h"
#include "schedule.h"

namespace pf::cuda::attention {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

inline bool is_plain(const Attention& p) {
  return p.scale > 0 && p.softcap == 0 && !p.mask && !p.alibi_slopes && p.keep_scale == 1;
}

// Of one head of one sequence.
template <class T, bool kIsPlain>
struct Scores {
  static constexpr bool kPlain = kIsPlain;
  const Attention& p;
  const Sequence& s;
  const char* mask;  // its row 0, key 0
  float scale;       // plain: in log2 units

  __device__ __forceinline__ Scores(const Attention& p, const Sequence& s, int batch, int head)
      : p(p), s(s), mask(nullptr), scale((float)p.scale) {
    if constexpr (kIsPlain)
      scale *= kLog2e;
    else {
      if (p.softcap != 0) scale = (float)(p.scale / p.softcap);
      if (p.mask)
        mask = (const char*)p.mask + (batch * p.mask_stride.dim[0] + head * p.mask_stride.dim[1]) * mask_size();
    }
  }
  __device__ __forceinline__ int mask_size() const {
    return p.mask_type == MaskType::boolean ? 1 : p.mask_type == MaskType::f32 ? 4 : 2;
  }
  __device__ __forceinline__ float slope_of(int batch, int head) const {
    if (kIsPlain || !p.alibi_slopes) return 0;
    return ((const float*)p.alibi_slopes)[batch * p.alibi_stride[0] + head * p.alibi_stride[1]];
  }

  // A score of q.k, and the tanh of softcap, which its derivative is made of.
  __device__ __forceinline__ float of(float product, int row, int column, float slope, float& curve) const {
    if constexpr (kIsPlain) return product;  // exponent has the scale
    float score = product * scale;
    if (p.softcap != 0) {
      curve = tanh(score);
      score = curve * (float)p.softcap;
    }
    if (p.alibi_slopes)
      score -= slope * (float)(row + s.diagonal < column ? column - row - s.diagonal : row + s.diagonal - column);
    if (mask && row < s.seqlen_q && column < s.seqlen_k) {
      const int64_t at = row * p.mask_stride.dim[2] + column * p.mask_stride.dim[3];
      if (p.mask_type == MaskType::boolean)
        score = mask[at] ? score : -infinity<float>();
      else if (p.mask_type == MaskType::f32)
        score += ((const float*)mask)[at];
      else
        score += to_float(((const T*)mask)[at]);
    }
    return score;
  }
  // The keys that a row sees, or the rows that see a key. One comparison each: a branch for each would take more than
  // their products.
  struct Seen {
    int first;
    unsigned count;

    __device__ __forceinline__ bool has(int at) const { return (unsigned)(at - first) < count; }
  };
  __device__ __forceinline__ Seen seen_by(int row) const {
    const int at = row + s.diagonal;
    const int first = p.window_left < 0 ? 0 : larger(at - (int)p.window_left, 0);
    const int end = p.window_right < 0 ? s.seqlen_k : smaller(s.seqlen_k, at + (int)p.window_right + 1);
    return {first, (unsigned)larger(end - first, 0)};
  }
  __device__ __forceinline__ Seen rows_that_see(int column) const {
    const int at = column - s.diagonal;
    const int first = p.window_right < 0 ? 0 : larger(at - (int)p.window_right, 0);
    const int end = p.window_left < 0 ? s.seqlen_q : smaller(s.seqlen_q, at + (int)p.window_left + 1);
    return {first, (unsigned)larger(end - first, 0)};
  }
  // A row's number, its maximum or lse, in its unit.
  __device__ __forceinline__ float unit() const { return kIsPlain ? scale : 1.0f; }
  // What exp2 is taken of.
  __device__ __forceinline__ float exponent(float score, float base) const {
    return kIsPlain ? fmaf(score, scale, -base) : (score - base) * kLog2e;
  }
  __device__ __forceinline__ float in_log2(float of_row) const { return kIsPlain ? of_row : of_row * kLog2e; }
};

// ---- dropout

// Which of a lane's four elements of a tile of products [16, 8] are kept, a bit each. Four neighbouring keys share a
// counter, (key / 4, row, head, 0). The lanes that need words of the same counters share the work: each has one made.
struct Dropout {
  uint64_t seed;
  uint32_t drop_below, head;

  __device__ __forceinline__ uint32_t kept_of(int row, int key) const {
    uint32_t words[4], kept = 0;
    philox4x32(seed, (uint32_t)key / 4, (uint32_t)row, head, 0, words);
    PF_UNROLL_ALL
    for (int i = 0; i < 4; i++) kept |= (uint32_t)(words[i] >= drop_below) << i;
    return kept;
  }
  // Rows of the tile are rows of q; first_key is a multiple of 8. A pair of lanes has four keys of two rows.
  __device__ __forceinline__ uint32_t of_rows(int first_row, int first_key) const {
    const int lane = (int)threadIdx.x % kWarp, is_odd = lane & 1;
    const uint32_t own = kept_of(first_row + lane / 4 + 8 * is_odd, first_key + lane % 4 / 2 * 4);
    const uint32_t other = __shfl_xor_sync(kAllLanes, own, 1);
    const uint32_t above = is_odd ? other >> 2 : own & 3, below = is_odd ? own >> 2 : other & 3;
    return above | below << 2;
  }
  // Rows of the tile are keys: four lanes have four neighbouring keys, and those eight below, of two rows of q.
  __device__ __forceinline__ uint32_t of_keys(int first_key, int first_row) const {
    const int lane = (int)threadIdx.x % kWarp, of_four = lane / 4 % 4;
    const uint32_t own = kept_of(first_row + lane % 4 * 2 + of_four % 2, first_key + lane / 16 * 4 + of_four / 2 * 8);
    uint32_t kept = 0;
    PF_UNROLL_ALL
    for (int i = 0; i < 4; i++) kept |= (__shfl_sync(kAllLanes, own, (lane & ~12) | i << 2) >> of_four & 1) << i;
    return kept;
  }
};

}  // namespace pf::cuda::attention
