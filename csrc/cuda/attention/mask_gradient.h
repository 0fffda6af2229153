// The gradient of an added mask: the scores' derivatives, summed where the mask was broadcast, always in the same
// order.
//
// A block owns a tile of the mask's own elements and makes the scores again, of every batch, head, row and key that
// share them.
#pragma once
#include "backward.h"

namespace pf::cuda::attention {

namespace {

// Of one dimension of a problem: what a block goes through.
struct Walk {
  int begin, end;
};
__device__ __forceinline__ Walk walk_of(bool is_shared, int own, int count, int all) {
  return is_shared ? Walk{0, all} : Walk{own, smaller(own + count, all)};
}

template <class T, int kD>
struct MaskGradient : Kernel<kThreads> {
  static constexpr int kRows = 16 * kWarps, kKeys = 4096 / kD;
  static constexpr int kShared = 2 * (kRows + kKeys) * kD * 2;

  // tiles: of the mask's rows times those of its keys; of keys there are key_tiles.
  __device__ void operator()(DeviceAttentionBwd params, BackwardAccess access, int tiles, int key_tiles) const {
    PF_DYNAMIC_SHARED(T, memory);
    PF_SHARED(float, of_warps, kWarps* kKeys);
    T *const queries = memory, *const douts = queries + kRows * kD, *const keys = douts + kRows * kD,
             *const values = keys + kKeys * kD;
    const Attention& p = params.at.of;
    const int mask_heads = (int)params.dmask_size[1];
    const Place place = place_of(tiles, mask_heads);
    const bool shares_batch = params.dmask_size[0] == 1, shares_head = mask_heads == 1;
    const bool shares_row = params.dmask_size[2] == 1, shares_key = params.dmask_size[3] == 1;
    const int own_row = place.tile / key_tiles * kRows, own_key = place.tile % key_tiles * kKeys;
    const Walk batches = walk_of(shares_batch, place.batch, 1, (int)p.B),
               heads = walk_of(shares_head, place.head, 1, (int)p.H);
    const Walk rows = walk_of(shares_row, own_row, kRows, (int)p.L),
               columns = walk_of(shares_key, own_key, kKeys, (int)p.S);
    const int lane = (int)threadIdx.x % kWarp, warp = (int)threadIdx.x / kWarp;
    const bool drops = p.keep_scale != 1;
    Dropout dropout = {drops ? *(const uint64_t*)params.at.seed : 0, p.drop_below, 0};

    float sums[kKeys / 8][4] = {};
    for (int batch = batches.begin; batch < batches.end; batch++)
      for (int head = heads.begin; head < heads.end; head++) {
        const Sequence s = sequence_of(params.at, batch);
        const Scores<T, false> scores(p, s, batch, head);
        const float slope = scores.slope_of(batch, head);
        const KeyValues<T> of(p, s, batch, head / (int)(p.H / p.Hkv), access.k, access.v);
        const int64_t of_terms = head_of_terms(params.at, s, batch, head);
        dropout.head = (uint32_t)(batch * p.H + head);
        for (int first_row = rows.begin; first_row < rows.end; first_row += kRows) {
          const Met met = keys_of(p, s, first_row, smaller(first_row + kRows, s.seqlen_q) - 1);
          const int row = first_row + 16 * warp + lane / 4;
          const Terms terms[2] = {terms_of<false>(params, s, of_terms, row),
                                  terms_of<false>(params, s, of_terms, row + 8)};
          for (int first = columns.begin; first < columns.end; first += kKeys) {
            if (first >= met.end || first + kKeys <= met.begin) continue;
            __syncthreads();  // nobody reads the tiles before
            load_rows<kRows, kD>(queries, rows_at((const T*)p.q, p.q_stride, batch, head, 0), p.q_stride.dim[2],
                                 first_row, s.seqlen_q, (int)p.E, access.q);
            load_rows<kRows, kD>(douts, rows_at((const T*)params.dout, params.dout_stride, batch, head, 0),
                                 params.dout_stride.dim[2], first_row, s.seqlen_q, (int)p.Ev, access.dout);
            load_rows<kKeys, kD>(keys, of.k, of.k_stride, first, s.seqlen_k, (int)p.E, of.of_k);
            load_rows<kKeys, kD>(values, of.v, of.v_stride, first, s.seqlen_k, (int)p.Ev, of.of_v);
            commit_async();
            wait_async<0>();
            __syncthreads();  // these have come
            float products[1][kKeys / 8][4] = {}, dscores[1][kKeys / 8][4] = {};
            add_row_products<T, kD>(products, queries, 16 * warp, keys);
            add_row_products<T, kD>(dscores, douts, 16 * warp, values);
            PF_UNROLL_ALL
            for (int n = 0; n < kKeys / 8; n++) {
              const uint32_t kept = drops ? dropout.of_rows(row - lane / 4, first + 8 * n) : 15;
              PF_UNROLL_ALL
              for (int i = 0; i < 4; i++) {
                const int column = first + 8 * n + lane % 4 * 2 + i % 2, at = row + i / 2 * 8;
                differentiate<T, false, false>(scores, products[0][n][i], dscores[0][n][i], at, column, slope,
                                               terms[i / 2], scores.seen_by(at).has(column), kept >> i & 1);
                sums[n][i] += dscores[0][n][i];
              }
            }
          }
        }
      }

    // A lane's sums of keys that share an element, then of rows that do.
    const int64_t matrix = (place.batch * params.dmask_size[1] + place.head) * params.dmask_size[2];
    auto store = [&](int row, int column, float value) {
      const int64_t at = (matrix + row) * params.dmask_size[3] + column;
      if (p.mask_type == MaskType::f32)
        ((float*)params.dmask)[at] = value;
      else
        ((T*)params.dmask)[at] = from_float<T>(value);
    };
    if (shares_key) {
      PF_UNROLL_ALL
      for (int half = 0; half < 2; half++) {
        float sum = 0;
        PF_UNROLL_ALL
        for (int n = 0; n < kKeys / 8; n++) sum += sums[n][2 * half] + sums[n][2 * half + 1];
        PF_UNROLL_ALL
        for (int n = 0; n < kKeys / 8; n++) sums[n][2 * half] = sums[n][2 * half + 1] = 0;
        sums[0][2 * half] = over_row(sum, Sum());  // of each of the four lanes, of which the first one's counts
      }
    }
    if (shares_row) {
      PF_UNROLL_ALL
      for (int n = 0; n < kKeys / 8; n++) PF_UNROLL_ALL
      for (int i = 0; i < 2; i++) {
        float sum = sums[n][i] + sums[n][i + 2];
        PF_UNROLL_ALL
        for (int apart = 4; apart < kWarp; apart *= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
        if (lane < 4) of_warps[warp * kKeys + 8 * n + lane * 2 + i] = sum;
      }
      __syncthreads();
      const int column = (int)threadIdx.x;
      if (column < (shares_key ? 1 : smaller(kKeys, (int)p.S - own_key))) {
        float sum = of_warps[column];
        PF_UNROLL_ALL
        for (int i = 1; i < kWarps; i++) sum += of_warps[i * kKeys + column];
        store(0, own_key + column, sum);
      }
    } else {
      PF_UNROLL_ALL
      for (int n = 0; n < kKeys / 8; n++) PF_UNROLL_ALL
      for (int i = 0; i < 4; i++) {
        const int row = own_row + 16 * warp + lane / 4 + i / 2 * 8, column = own_key + 8 * n + lane % 4 * 2 + i % 2;
        if (row < (int)p.L && column < (shares_key ? 1 : (int)p.S)) store(row, column, sums[n][i]);
      }
    }
  }
};

// After the rows' terms.
template <class T, int kD>
Status mask_gradient(const DeviceAttentionBwd& p, void* stream) {
  typedef MaskGradient<T, kD> K;
  const int64_t *size = p.dmask_size, heads = size[0] * size[1];
  const int64_t key_tiles = blocks_for(size[3], K::kKeys), tiles = blocks_for(size[2], K::kRows) * key_tiles;
  if (heads == 0 || tiles == 0) return {nullptr};
  if (is_past_grid(tiles, heads)) return kTooMany;
  return launch<K>(dim3((unsigned)(tiles * heads)), K::kShared, (Stream)stream, p, how_to_access(p), (int)tiles,
                   (int)key_tiles);
}

}  // namespace

Status attention_bwd(const DeviceAttentionBwd& p, void* stream) {
  const Attention& of = p.at.of;
  if (!of.B) return {nullptr};
  return for_call(of, [&](auto element, auto d, auto plain) -> Status {
    typedef decltype(element) T;
    constexpr int kD = decltype(d)::value;
    constexpr bool kIsPlain = decltype(plain)::value;
    typedef BackwardTile<kD> Tile;
    const int64_t terms = blocks_for(p.at.longest_q, kWarps), rows = blocks_for(p.at.longest_q, Tile::kOwn);
    const int64_t keys = blocks_for(p.at.longest_k, Tile::kOwn), heads = of.B * of.H, kv_heads = of.B * of.Hkv;
    if (is_past_grid(terms, heads) || is_past_grid(keys, kv_heads)) return kTooMany;
    const BackwardAccess access = how_to_access(p);
    Status status = {nullptr};
    if (heads > 0 && terms > 0) {
      status = launch<RowTerms<T, kIsPlain>>(dim3((unsigned)(terms * heads)), 0, (Stream)stream, p, (int)terms);
      if (status.error) return status;
      status = launch<QueryGradient<T, kD, kIsPlain>>(dim3((unsigned)(rows * heads)), Tile::kShared, (Stream)stream, p,
                                                      access, (int)rows);
    }
    if constexpr (!kIsPlain)
      if (!status.error && p.dmask) status = mask_gradient<T, kD>(p, stream);
    if (status.error || kv_heads == 0 || keys == 0) return status;
    const dim3 grid((unsigned)(keys * kv_heads));
    if constexpr (kD <= 128) {
      return launch<KeyGradient<T, kD, kIsPlain, true, true>>(grid, Tile::kShared, (Stream)stream, p, access,
                                                              (int)keys);
    } else {  // the sums of both are more than the registers
      status =
          launch<KeyGradient<T, kD, kIsPlain, true, false>>(grid, Tile::kShared, (Stream)stream, p, access, (int)keys);
      if (status.error) return status;
      return launch<KeyGradient<T, kD, kIsPlain, false, true>>(grid, Tile::kShared, (Stream)stream, p, access,
                                                               (int)keys);
    }
  });
}

}  // namespace pf::cuda::attention
