// dq, dk and dv of attention, deterministic: nothing is added to memory.
//
// A block owns a tile of rows and walks the keys that they see (dq), or owns a tile of keys and walks the rows that see
// them, of every query head that shares the keys (dk, dv). Both make q.k and dout.v again. Of two buffers one is
// multiplied while the other is filled. Dao 2023, arXiv:2307.08691, algorithm 2, in two kernels.
#pragma once
#include "calls.h"
#include "softmax.h"

namespace pf::cuda::attention {

namespace {

// Rows that a block owns, 16 of each warp, and those it meets at a time, of two tensors each: at most 96 KB.
template <int kD>
struct BackwardTile {
  static constexpr int kOwn = 16 * kWarps, kMet = 4096 / kD;
  static constexpr int kShared = (2 * kOwn + 4 * kMet) * kD * 2;
};

struct BackwardAccess {
  Access q, k, v, dout, dq, dk, dv;
};
inline BackwardAccess how_to_access(const DeviceAttentionBwd& p) {
  const Attention& of = p.at.of;
  return {access_of(of.q, of.q_stride, of.E),  access_of(of.k, of.k_stride, of.E),
          access_of(of.v, of.v_stride, of.Ev), access_of(p.dout, p.dout_stride, of.Ev),
          access_of(p.dq, p.dq_stride, of.E),  access_of(p.dk, p.dk_stride, of.E),
          access_of(p.dv, p.dv_stride, of.Ev)};
}

// The first row of a head of a sequence.
template <class T>
__device__ __forceinline__ T* rows_at(T* tensor, const Strides4& stride, int batch, int head, int start) {
  return tensor + batch * stride.dim[0] + head * stride.dim[1] + start * stride.dim[2];
}

// What a row brings: lse in its unit, delta = sum(out dout) - dlse, and what lse's rounding left out, in log2 units.
// +inf for a row that sees nothing or is not there, whose weights are zeros then.
struct Terms {
  float lse, delta, low;
};
template <bool kIsPlain>
__device__ __forceinline__ Terms terms_of(const DeviceAttentionBwd& p, const Sequence& s, int64_t of_head, int row) {
  if (row >= s.seqlen_q) return {infinity<float>(), 0, 0};
  const float* const at = (const float*)p.terms + of_head + row;
  return {at[0], at[p.terms_rows], kIsPlain ? 0.0f : at[2 * p.terms_rows]};
}
__device__ __forceinline__ int64_t head_of_terms(const DeviceAttention& p, const Sequence& s, int batch, int head) {
  return batch * p.lse_stride[0] + head * p.lse_stride[1] + s.q_start;
}

template <class T, bool kIsPlain>
struct RowTerms : Kernel<kThreads> {
  __device__ void operator()(DeviceAttentionBwd params, int tiles) const {
    const Attention& p = params.at.of;
    const Place place = place_of(tiles, (int)p.H);
    const Sequence s = sequence_of(params.at, place.batch);
    const int lane = (int)threadIdx.x % kWarp, row = place.tile * kWarps + (int)threadIdx.x / kWarp;
    if (row >= s.seqlen_q) return;
    const T* const out = rows_at((const T*)params.out, params.out_stride, place.batch, place.head, s.q_start + row);
    const T* const dout = rows_at((const T*)params.dout, params.dout_stride, place.batch, place.head, s.q_start + row);
    float delta = 0;
    for (int i = lane; i < (int)p.Ev; i += kWarp)
      delta += to_float(out[i * params.out_stride.dim[3]]) * to_float(dout[i * params.dout_stride.dim[3]]);
    delta = over_warp(delta, Sum());
    if (lane) return;
    const int64_t at = head_of_terms(params.at, s, place.batch, place.head) + row;
    const float lse = ((const float*)params.lse)[at];
    const bool is_empty = lse == -infinity<float>();  // whose gradient of lse may be anything
    if (params.dlse) delta -= ((const float*)params.dlse)[at];
    float* const to = (float*)params.terms + at;
    to[0] = is_empty ? infinity<float>() : kIsPlain ? lse * kLog2e : lse;
    to[params.terms_rows] = is_empty ? 0.0f : delta;
    to[2 * params.terms_rows] = params.lse_low ? ((const float*)params.lse_low)[at] * kLog2e : 0.0f;
  }
};

// Of q.k and dout.v: the weight as it was multiplied with v, and the derivative of q.k but for the scale, or of the
// score.
template <class T, bool kIsPlain, bool kOfProduct = true>
__device__ __forceinline__ void differentiate(const Scores<T, kIsPlain>& scores, float& product, float& dweight,
                                              int row, int column, float slope, const Terms& terms, bool is_seen,
                                              bool is_kept) {
  float curve = 0;
  const float score = scores.of(product, row, column, slope, curve);
  float x = scores.exponent(score, terms.lse);
  if constexpr (!kIsPlain) x -= terms.low;
  const float weight = is_seen ? exp2_approx(x) : 0.0f;
  if constexpr (kIsPlain) {
    product = weight;
    dweight = weight * (dweight - terms.delta);
  } else {
    const float by = is_kept ? (float)scores.p.keep_scale : 0.0f;
    product = weight * by;
    dweight = weight * (dweight * by - terms.delta);
    if (kOfProduct && scores.p.softcap != 0) dweight *= 1.0f - curve * curve;
  }
}

template <class T, int kD, bool kIsPlain>
struct QueryGradient : Kernel<kThreads, 2> {
  typedef BackwardTile<kD> Tile;
  static constexpr int kMet = Tile::kMet;

  __device__ void operator()(DeviceAttentionBwd params, BackwardAccess access, int tiles) const {
    PF_DYNAMIC_SHARED(T, memory);
    T *const queries = memory, *const douts = queries + Tile::kOwn * kD, *const met = douts + Tile::kOwn * kD;
    const Attention& p = params.at.of;
    const Place place = place_of(tiles, (int)p.H);
    const int batch = place.batch, head = place.head;
    const Sequence s = sequence_of(params.at, batch);
    const int first_row = (tiles - 1 - place.tile) * Tile::kOwn;  // the longest causal rows first
    if (first_row >= s.seqlen_q) return;
    const int lane = (int)threadIdx.x % kWarp, warp_row = (int)threadIdx.x / kWarp * 16;
    const int own_row = first_row + warp_row + lane / 4;

    const Scores<T, kIsPlain> scores(p, s, batch, head);
    const float slope = scores.slope_of(batch, head);
    const bool drops = !kIsPlain && p.keep_scale != 1;
    const Dropout dropout = {drops ? *(const uint64_t*)params.at.seed : 0, p.drop_below,
                             (uint32_t)(batch * p.H + head)};
    const KeyValues<T> of(p, s, batch, head / (int)(p.H / p.Hkv), access.k, access.v);
    const int64_t of_terms = head_of_terms(params.at, s, batch, head);
    const Terms terms[2] = {terms_of<kIsPlain>(params, s, of_terms, own_row),
                            terms_of<kIsPlain>(params, s, of_terms, own_row + 8)};
    const auto seen = [&](int half) { return scores.seen_by(own_row + 8 * half); };

    const Met keys = keys_of(p, s, first_row, smaller(first_row + Tile::kOwn, s.seqlen_q) - 1);
    auto load = [&](int first, int buffer) {
      T* const to = met + buffer * 2 * kMet * kD;
      load_rows<kMet, kD>(to, of.k, of.k_stride, first, s.seqlen_k, (int)p.E, of.of_k);
      load_rows<kMet, kD>(to + kMet * kD, of.v, of.v_stride, first, s.seqlen_k, (int)p.Ev, of.of_v);
    };
    float sums[1][kD / 8][4] = {};
    int first = keys.begin / kMet * kMet, buffer = 0;
    if (first < keys.end) {
      load_rows<Tile::kOwn, kD>(queries, rows_at((const T*)p.q, p.q_stride, batch, head, s.q_start), p.q_stride.dim[2],
                                first_row, s.seqlen_q, (int)p.E, access.q);
      load_rows<Tile::kOwn, kD>(douts, rows_at((const T*)params.dout, params.dout_stride, batch, head, s.q_start),
                                params.dout_stride.dim[2], first_row, s.seqlen_q, (int)p.Ev, access.dout);
      load(first, 0);
      commit_async();
    }
    for (; first < keys.end; first += kMet, buffer ^= 1) {
      wait_async<0>();
      __syncthreads();  // this tile has come, and nobody reads the one before
      if (first + kMet < keys.end) load(first + kMet, buffer ^ 1);
      commit_async();
      const T* const k = met + buffer * 2 * kMet * kD;
      float products[1][kMet / 8][4] = {}, dweights[1][kMet / 8][4] = {};
      add_row_products<T, kD>(products, queries, warp_row, k);
      add_row_products<T, kD>(dweights, douts, warp_row, k + kMet * kD);
      const bool is_whole = keys.is_whole(first, kMet);
      PF_UNROLL_ALL
      for (int n = 0; n < kMet / 8; n++) {
        const uint32_t kept = drops ? dropout.of_rows(own_row - lane / 4, first + 8 * n) : 15;
        PF_UNROLL_ALL
        for (int i = 0; i < 4; i++) {
          const int column = first + 8 * n + lane % 4 * 2 + i % 2;
          differentiate(scores, products[0][n][i], dweights[0][n][i], own_row + i / 2 * 8, column, slope, terms[i / 2],
                        is_whole || seen(i / 2).has(column), kept >> i & 1);
        }
      }
      add_weighted_rows<T, kD>(sums, dweights, k);
    }
    T* const dq = rows_at((T*)params.dq, params.dq_stride, batch, head, s.q_start);
    store_sums<T, kD>(
        sums, queries, warp_row, (int)p.E, access.dq.is_aligned, [&](int, int) { return (float)p.scale; },
        [&](int row) {
          const int at = first_row + warp_row + row;
          return at < s.seqlen_q ? dq + at * params.dq_stride.dim[2] : nullptr;
        });
  }
};

// Tiles of products are [keys, rows] here, so that weights and derivatives are left operands as they are.
template <class T, int kD, bool kIsPlain, bool kWantsK, bool kWantsV>
struct KeyGradient : Kernel<kThreads, 2> {
  typedef BackwardTile<kD> Tile;
  static constexpr int kMet = Tile::kMet;

  __device__ void operator()(DeviceAttentionBwd params, BackwardAccess access, int tiles) const {
    PF_DYNAMIC_SHARED(T, memory);
    T *const keys = memory, *const values = keys + Tile::kOwn * kD, *const met = values + Tile::kOwn * kD;
    const Attention& p = params.at.of;
    const Place place = place_of(tiles, (int)p.Hkv);
    const int batch = place.batch, kv_head = place.head;
    const Sequence s = sequence_of(params.at, batch);
    const int first_key = place.tile * Tile::kOwn;  // the first keys, which the most causal rows see, first
    if (first_key >= s.seqlen_k) return;
    const int lane = (int)threadIdx.x % kWarp, warp_row = (int)threadIdx.x / kWarp * 16;
    const int own_key = first_key + warp_row + lane / 4, group = (int)(p.H / p.Hkv);

    const KeyValues<T> of(p, s, batch, kv_head, access.k, access.v);
    const bool drops = !kIsPlain && p.keep_scale != 1;
    Dropout dropout = {drops ? *(const uint64_t*)params.at.seed : 0, p.drop_below, 0};
    const Met rows = rows_of(p, s, first_key, smaller(first_key + Tile::kOwn, s.seqlen_k) - 1);
    const int first_tile = rows.begin / kMet, row_tiles = larger((rows.end + kMet - 1) / kMet - first_tile, 0);
    auto load = [&](int head, int first, int buffer) {
      T* const to = met + buffer * 2 * kMet * kD;
      load_rows<kMet, kD>(to, rows_at((const T*)p.q, p.q_stride, batch, head, s.q_start), p.q_stride.dim[2], first,
                          s.seqlen_q, (int)p.E, access.q);
      load_rows<kMet, kD>(to + kMet * kD, rows_at((const T*)params.dout, params.dout_stride, batch, head, s.q_start),
                          params.dout_stride.dim[2], first, s.seqlen_q, (int)p.Ev, access.dout);
    };
    float dk_sums[1][kWantsK ? kD / 8 : 2][4] = {}, dv_sums[1][kWantsV ? kD / 8 : 2][4] = {};
    int head = kv_head * group, tile = 0, buffer = 0;
    const int end_head = row_tiles ? head + group : head;
    if (head < end_head) {
      load_rows<Tile::kOwn, kD>(keys, of.k, of.k_stride, first_key, s.seqlen_k, (int)p.E, of.of_k);
      if (kWantsK) load_rows<Tile::kOwn, kD>(values, of.v, of.v_stride, first_key, s.seqlen_k, (int)p.Ev, of.of_v);
      load(head, first_tile * kMet, 0);
      commit_async();
    }
    while (head < end_head) {
      const bool is_last = tile + 1 == row_tiles;
      const int next_head = is_last ? head + 1 : head, next_tile = is_last ? 0 : tile + 1;
      wait_async<0>();
      __syncthreads();  // this tile has come, and nobody reads the one before
      if (next_head < end_head) load(next_head, (first_tile + next_tile) * kMet, buffer ^ 1);
      commit_async();

      const int first = (first_tile + tile) * kMet;
      const T *const q = met + buffer * 2 * kMet * kD, *const dout = q + kMet * kD;
      const Scores<T, kIsPlain> scores(p, s, batch, head);
      const float slope = scores.slope_of(batch, head);
      const int64_t of_terms = head_of_terms(params.at, s, batch, head);
      Terms terms[kMet / 8][2];  // asked for before the products, which take longer
      PF_UNROLL_ALL
      for (int i = 0; i < kMet / 4; i++)
        terms[i / 2][i % 2] = terms_of<kIsPlain>(params, s, of_terms, first + i / 2 * 8 + lane % 4 * 2 + i % 2);
      float products[1][kMet / 8][4] = {}, dweights[1][kMet / 8][4] = {};
      add_row_products<T, kD>(products, keys, warp_row, q);
      if (kWantsK) add_row_products<T, kD>(dweights, values, warp_row, dout);
      const bool is_whole = rows.is_whole(first, kMet);
      const auto seen = [&](int half) { return scores.rows_that_see(own_key + 8 * half); };
      dropout.head = (uint32_t)(batch * p.H + head);
      PF_UNROLL_ALL
      for (int n = 0; n < kMet / 8; n++) {
        const uint32_t kept = drops ? dropout.of_keys(own_key - lane / 4, first + 8 * n) : 15;
        PF_UNROLL_ALL
        for (int i = 0; i < 4; i++) {
          const int row = first + 8 * n + lane % 4 * 2 + i % 2;
          differentiate(scores, products[0][n][i], dweights[0][n][i], row, own_key + i / 2 * 8, slope, terms[n][i % 2],
                        is_whole || seen(i / 2).has(row), kept >> i & 1);
        }
      }
      if constexpr (kWantsV) add_weighted_rows<T, kD>(dv_sums, products, dout);
      if constexpr (kWantsK) add_weighted_rows<T, kD>(dk_sums, dweights, q);
      head = next_head, tile = next_tile, buffer ^= 1;
    }
    auto store = [&](const auto& sums, T* own, T* gradient, const Strides4& stride, int64_t columns, const Access& how,
                     float by) {
      T* const to = rows_at(gradient, stride, batch, kv_head, s.k_start);
      store_sums<T, kD>(
          sums, own, warp_row, (int)columns, how.is_aligned, [&](int, int) { return by; },
          [&](int row) {
            const int at = first_key + warp_row + row;
            return at < s.seqlen_k ? to + at * stride.dim[2] : nullptr;
          });
    };
    if constexpr (kWantsK) store(dk_sums, keys, (T*)params.dk, params.dk_stride, p.E, access.dk, (float)p.scale);
    if constexpr (kWantsV) store(dv_sums, values, (T*)params.dv, params.dv_stride, p.Ev, access.dv, 1.0f);
  }
};

}  // namespace

}  // namespace pf::cuda::attention
