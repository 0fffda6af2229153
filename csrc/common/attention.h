// Attention: out = softmax(scores) v, row by row, and its derivatives. Strides count elements and may be anything.
#pragma once
#include <stdint.h>

#include "dtype.h"

// The type of an additive mask is its Dtype.
enum class MaskType : int32_t { none = -1, f32, f64, bf16, f16, boolean };
constexpr int kMaskTypes = 5;
static_assert((int)MaskType::f32 == (int)Dtype::f32 && (int)MaskType::f64 == (int)Dtype::f64 &&
              (int)MaskType::bf16 == (int)Dtype::bf16 && (int)MaskType::f16 == (int)Dtype::f16);

struct Strides4 {
  int64_t dim[4];
};

// What forward and backward share. Scores: s_ij = softcap(scale q_i.k_j) + mask_ij - slope |i + diagonal - j|, visible
// iff i + diagonal - window_left <= j <= i + diagonal + window_right (a negative window has no bound).
struct Attention {
  const void* q;             // [B, H, L, E], dtype
  const void* k;             // [B, Hkv, S, E], dtype; query head h reads kv head h / (H / Hkv)
  const void* v;             // [B, Hkv, S, Ev], dtype
  const void* mask;          // [B, H, L, S], mask_type; null: none. Stride 0 where broadcast
  const void* alibi_slopes;  // [B, H], float (double for f64); null: none
  Strides4 q_stride, k_stride, v_stride, mask_stride;
  int64_t alibi_stride[2];
  int64_t B, H, Hkv, L, S, E, Ev;
  int64_t window_left, window_right, diagonal;  // clamped so that sums stay within 31 bits
  double scale, softcap;                        // softcap 0: none
  uint32_t drop_below;                          // dropout: kept are words >= drop_below,
  double keep_scale;                            // and multiplied by this; 1: no dropout
  uint64_t seed;                                // Philox key; read with dropout
  int64_t first_head;                           // number of head 0 of batch 0 among those the dropout masks count
  Dtype dtype;
  MaskType mask_type;
};

struct AttentionFwd {
  Attention of;
  void* out;      // [B, H, L, Ev], dtype, last dimension contiguous; of attention_weights: [B, H, L, S], and Ev is 0
  void* lse;      // [B, H, L], float (double for f64), contiguous
  void* lse_low;  // likewise: what the rounding of lse left out, so that their sum is max + log(sum); null: not wanted
  Strides4 out_stride;
  void* workspace;  // as many bytes as attention_workspace says
};

struct AttentionBwd {
  Attention of;
  const void* dout;     // [B, H, L, Ev], dtype
  const void* dlse;     // [B, H, L], type of lse, contiguous; null: none
  const void* out;      // [B, H, L, Ev], dtype
  const void* lse;      // [B, H, L], contiguous
  const void* lse_low;  // likewise; null: as if 0
  void *dq, *dk, *dv;   // shapes of q, k, v; dtype; last dimension contiguous
  void* dmask;          // [mask sizes], type of the mask, contiguous: summed where the mask was broadcast; null: none
  Strides4 dout_stride, out_stride, dq_stride, dk_stride, dv_stride;
  int64_t dmask_size[4];  // sizes of the mask before it was broadcast
  void* workspace;
  bool of_weights;  // out and dout are weights [B, H, L, S] and their gradient; v and dv do not exist, Ev is 0
};

enum class AttentionPass : int32_t { fwd = 0, bwd = 1 };
constexpr int kAttentionPasses = 2;

// How much workspace a call needs.
struct AttentionWorkspace {
  int64_t B, H, L, S, E, Ev;
  Dtype dtype;
  AttentionPass pass;
  int32_t num_threads;
  int64_t* bytes;  // the answer
};
