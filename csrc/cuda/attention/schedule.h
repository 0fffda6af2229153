// Which block has which tile, and which tiles of the other side it meets.
#pragma once
#include "../../common/device_attention.h"
#include "../core/values.h"

namespace pf::cuda::attention {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ int larger(int a, int b) { return a < b ? b : a; }

// A sequence of the batch: where it begins in the tensors, and how long it is.
struct Sequence {
  int q_start, seqlen_q, k_start, seqlen_k;
  int diagonal;  // row i stands at key i + diagonal
};

__device__ __forceinline__ int index_at(const void* indices, int bytes, int64_t i, int most) {
  const int64_t value = bytes == 8 ? ((const int64_t*)indices)[i] : (int64_t)((const int32_t*)indices)[i];
  return value < 0 ? 0 : value > most ? most : (int)value;  // never outside of the tensors, whatever it is
}

__device__ __forceinline__ Sequence sequence_of(const DeviceAttention& p, int batch) {
  Sequence s = {0, (int)p.of.L, 0, (int)p.of.S, (int)p.of.diagonal};
  if (p.cu_seqlens_q) {
    s.q_start = index_at(p.cu_seqlens_q, p.index_bytes_q, batch, s.seqlen_q);
    s.seqlen_q = larger(index_at(p.cu_seqlens_q, p.index_bytes_q, batch + 1, s.seqlen_q) - s.q_start, 0);
  }
  if (p.cu_seqlens_k) {
    s.k_start = index_at(p.cu_seqlens_k, p.index_bytes_k, batch, s.seqlen_k);
    s.seqlen_k = larger(index_at(p.cu_seqlens_k, p.index_bytes_k, batch + 1, s.seqlen_k) - s.k_start, 0);
  }
  if (p.seqlens_k) s.seqlen_k = index_at(p.seqlens_k, p.index_bytes_k, batch, s.seqlen_k);
  if (p.from_end) s.diagonal = s.seqlen_k - s.seqlen_q;
  return s;
}

// A block's place in a grid of tiles x heads x batches.
struct Place {
  int tile, head, batch;
};
__device__ __forceinline__ Place place_of(int tiles, int heads) {
  const int block = (int)blockIdx.x;
  return {block % tiles, block / tiles % heads, block / tiles / heads};
}

// What a tile of one side meets of the other: [begin, end); of [whole_begin, whole_end) every row sees every key.
struct Met {
  int begin, end, whole_begin, whole_end;

  __device__ __forceinline__ bool is_whole(int first, int count) const {
    return first >= whole_begin && first + count <= whole_end;
  }
};

// The keys that rows [first, last] see.
__device__ __forceinline__ Met keys_of(const Attention& p, const Sequence& s, int first, int last) {
  const int left = (int)p.window_left, right = (int)p.window_right;
  Met met = {0, s.seqlen_k, 0, s.seqlen_k};
  if (left >= 0) {
    met.begin = larger(first + s.diagonal - left, 0);
    met.whole_begin = larger(last + s.diagonal - left, 0);
  }
  if (right >= 0) {
    met.end = smaller(met.end, last + s.diagonal + right + 1);
    met.whole_end = smaller(met.whole_end, first + s.diagonal + right + 1);
  }
  return met;
}

// The rows that see keys [first, last]; none sees all of them where the keys end between.
__device__ __forceinline__ Met rows_of(const Attention& p, const Sequence& s, int first, int last) {
  const int left = (int)p.window_left, right = (int)p.window_right;
  Met met = {0, s.seqlen_q, 0, last < s.seqlen_k ? s.seqlen_q : 0};
  if (right >= 0) {
    met.begin = larger(first - s.diagonal - right, 0);
    met.whole_begin = larger(last - s.diagonal - right, 0);
  }
  if (left >= 0) {
    met.end = smaller(met.end, last - s.diagonal + left + 1);
    met.whole_end = smaller(met.whole_end, first - s.diagonal + left + 1);
  }
  return met;
}

}  // namespace pf::cuda::attention
