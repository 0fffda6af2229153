// Attention on a GPU: common/attention.h's problem, and what of it lies in the device's memory, where the host does not
// look.
#pragma once
#include "attention.h"

// A packed batch has batch strides of 0, and L and S count all its tokens.
struct DeviceAttention {
  Attention of;                  // its `seed` is not read, nor its `first_head`
  const void* seed;              // int64, one element; read with dropout
  const void* cu_seqlens_q;      // [B + 1], where the queries of each sequence begin; null: all begin at 0 and have L
  const void* cu_seqlens_k;      // likewise of the keys, S
  const void* seqlens_k;         // [B], keys in use of each; null: all
  int64_t longest_q, longest_k;  // rows and keys beyond these are not computed
  int64_t lse_stride[2];  // of lse, dlse and row terms: from batch to batch, from head to head; rows are adjacent
  int32_t index_bytes_q, index_bytes_k;  // of what says where sequences begin and end: 4 or 8
  bool from_end;                         // the last row stands at the last key; else `diagonal` holds
};

struct DeviceAttentionFwd {
  DeviceAttention at;
  void* out;      // as AttentionFwd's
  void* lse;      // float
  void* lse_low;  // null: not wanted
  Strides4 out_stride;
};

struct DeviceAttentionBwd {
  DeviceAttention at;
  const void *dout, *dlse, *out, *lse, *lse_low;  // as AttentionBwd's
  void *dq, *dk, *dv;
  void* dmask;
  int64_t dmask_size[4];
  Strides4 dout_stride, out_stride, dq_stride, dk_stride, dv_stride;
  void* terms;         // float, three numbers of each row, one after another: lse, delta, the low part
  int64_t terms_rows;  // of all heads and batches
};

// Keys are cut into `splits` parts of `split_len`, each a softmax of its own, which are then combined.
struct DeviceAttentionDecode {
  DeviceAttentionFwd fwd;
  void* part_out;  // float [B, H, L, splits, Ev]
  void* part_lse;  // float [B, H, L, splits], in log2 units
  int64_t splits, split_len;
  // Paged: k and v are pools [num_blocks, Hkv, block_size, ...], and key j of a batch lies in block table[B, j /
  // block_size], of max_blocks; S is max_blocks block_size. null: they are [B, Hkv, S, ...].
  const void* block_table;
  int64_t max_blocks, block_size, num_blocks;
  int32_t block_bytes;  // of an element of the table: 4 or 8
};
