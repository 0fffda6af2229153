// out = softmax(scores(q k^T)) v without the matrix of scores: a block has a tile of rows and walks the keys that they
// see.
//
// A copy is always on its way: the keys of the next tile while this tile's values are multiplied, the values while the
// scores are made. Dao 2023, arXiv:2307.08691.
#pragma once
#include "calls.h"
#include "softmax.h"

namespace pf::cuda::attention {

namespace {

// Rows a warp has, in tiles of 16, and keys of a tile. Registers hold kRowTiles * (kD + keys) / 2 sums of a lane;
// shared memory, q's rows and a tile of keys and of values: at most 96 KB, which every GPU since sm_80 gives a block.
template <int kD, bool kIsPlain>
struct ForwardTile {
  static constexpr int kRowTiles = kD == 64 || (kD == 128 && kIsPlain) ? 2 : 1;
  static constexpr int kKeys = kD == 128 && kIsPlain ? 32 : kD == 256 && !kIsPlain ? 16 : 64;  // with more ptxas spills
  static constexpr int kWarpRows = 16 * kRowTiles, kRows = kWarps * kWarpRows;
  static constexpr int kShared = (kRows + 2 * kKeys) * kD * 2;
};

// Folds the keys [met.begin, met.end) into the softmax of a warp's rows and into the sums of their values.
//
// load_queries() starts the copies of q's rows; row_of(m, half) and slope_of(m, half) say of a lane's rows which they
// are of their sequence, and ALiBi's slope. A warp without rows comes to the barriers only.
template <class T, int kD, bool kIsPlain, class Tile, class Keys, class LoadQueries, class RowOf, class SlopeOf>
__device__ __forceinline__ void attend(float (&sums)[Tile::kRowTiles][kD / 8][4],
                                       RunningSoftmax<Tile::kRowTiles>& softmax, T* memory,
                                       const Scores<T, kIsPlain>& scores, const Dropout* dropout, const Keys& of,
                                       const Met& met, bool has_rows, LoadQueries load_queries, RowOf row_of,
                                       SlopeOf slope_of) {
  constexpr int kKeys = Tile::kKeys, kRowTiles = Tile::kRowTiles;
  const Attention& p = scores.p;
  const int lane = (int)threadIdx.x % kWarp, warp = (int)threadIdx.x / kWarp, seqlen_k = scores.s.seqlen_k;
  T *const queries = memory, *const keys = queries + Tile::kRows * kD, *const values = keys + kKeys * kD;
  int first = met.begin / kKeys * kKeys;
  if (first >= met.end) return;
  load_queries();
  of.template load_keys<kKeys, kD>(keys, first, seqlen_k, (int)p.E);
  commit_async();
  for (; first < met.end; first += kKeys) {
    wait_async<0>();
    __syncthreads();  // the keys have come, and nobody reads the values of the tile before
    of.template load_values<kKeys, kD>(values, first, seqlen_k, (int)p.Ev);
    commit_async();
    float tile[kRowTiles][kKeys / 8][4] = {};
    if (has_rows) {
      add_row_products<T, kD>(tile, queries, warp * Tile::kWarpRows, keys);
      const bool is_whole = met.is_whole(first, kKeys);
      if (!kIsPlain || !is_whole) {
        PF_UNROLL_ALL
        for (int m = 0; m < kRowTiles; m++) PF_UNROLL_ALL
        for (int half = 0; half < 2; half++) {
          const int row = row_of(m, half);
          const auto seen = scores.seen_by(row);
          const float slope = slope_of(m, half);
          PF_UNROLL_ALL
          for (int n = 0; n < kKeys / 8; n++) PF_UNROLL_ALL
          for (int i = 0; i < 2; i++) {
            const int column = first + 8 * n + lane % 4 * 2 + i;
            float curve;
            const float score = scores.of(tile[m][n][2 * half + i], row, column, slope, curve);
            tile[m][n][2 * half + i] = seen.has(column) ? score : -infinity<float>();
          }
        }
      }
      softmax.fold(scores, tile, sums);
      if (!kIsPlain && dropout) {  // behind the sum: the softmax is of all keys
        PF_UNROLL_ALL
        for (int m = 0; m < kRowTiles; m++) PF_UNROLL_ALL
        for (int n = 0; n < kKeys / 8; n++) {
          const uint32_t kept = dropout->of_rows(row_of(m, 0) - lane / 4, first + 8 * n);
          PF_UNROLL_ALL
          for (int i = 0; i < 4; i++) tile[m][n][i] = kept >> i & 1 ? tile[m][n][i] : 0.0f;
        }
      }
    }
    wait_async<0>();
    __syncthreads();  // the values have come, and nobody reads the keys
    if (first + kKeys < met.end) of.template load_keys<kKeys, kD>(keys, first + kKeys, seqlen_k, (int)p.E);
    commit_async();
    if (has_rows) add_weighted_rows<T, kD>(sums, tile, values);
  }
  softmax.finish();
}

// How a call's tensors may be read and written.
struct ForwardAccess {
  Access q, k, v, out;
};
inline ForwardAccess how_to_access(const DeviceAttentionFwd& p) {
  const Attention& of = p.at.of;
  return {access_of(of.q, of.q_stride, of.E), access_of(of.k, of.k_stride, of.E), access_of(of.v, of.v_stride, of.Ev),
          access_of(p.out, p.out_stride, of.Ev)};
}

template <class T, int kD, bool kIsPlain>
struct Forward : Kernel<kThreads, 2> {
  typedef ForwardTile<kD, kIsPlain> Tile;

  __device__ void operator()(DeviceAttentionFwd params, ForwardAccess access, int tiles) const {
    PF_DYNAMIC_SHARED(T, memory);
    const Attention& p = params.at.of;
    const Place place = place_of(tiles, (int)p.H);
    const int batch = place.batch, head = place.head;
    const Sequence s = sequence_of(params.at, batch);
    const int first_row = (tiles - 1 - place.tile) * Tile::kRows;  // the longest causal rows first
    if (first_row >= s.seqlen_q) return;
    const int lane = (int)threadIdx.x % kWarp, warp_row = (int)threadIdx.x / kWarp * Tile::kWarpRows;
    const int last_row = smaller(first_row + Tile::kRows, s.seqlen_q) - 1;

    const Scores<T, kIsPlain> scores(p, s, batch, head);
    const float slope = scores.slope_of(batch, head);
    Dropout dropout = {0, p.drop_below, (uint32_t)(batch * p.H + head)};
    const bool drops = !kIsPlain && p.keep_scale != 1;
    if (drops) dropout.seed = *(const uint64_t*)params.at.seed;
    const KeyValues<T> of(p, s, batch, head / (int)(p.H / p.Hkv), access.k, access.v);
    const T* const q =
        (const T*)p.q + batch * p.q_stride.dim[0] + head * p.q_stride.dim[1] + s.q_start * p.q_stride.dim[2];
    auto row_of = [&](int m, int half) { return first_row + warp_row + 16 * m + 8 * half + lane / 4; };

    float sums[Tile::kRowTiles][kD / 8][4] = {};
    RunningSoftmax<Tile::kRowTiles> softmax;
    attend<T, kD, kIsPlain, Tile>(
        sums, softmax, memory, scores, drops ? &dropout : nullptr, of, keys_of(p, s, first_row, last_row), true,
        [&] { load_rows<Tile::kRows, kD>(memory, q, p.q_stride.dim[2], first_row, s.seqlen_q, (int)p.E, access.q); },
        row_of, [&](int, int) { return slope; });

    const int64_t of_lse = batch * params.at.lse_stride[0] + head * params.at.lse_stride[1] + s.q_start;
    if (lane % 4 == 0) {
      PF_UNROLL_ALL
      for (int i = 0; i < 2 * Tile::kRowTiles; i++) {
        const int row = row_of(i / 2, i % 2);
        if (row >= s.seqlen_q) continue;
        float low;
        ((float*)params.lse)[of_lse + row] = softmax.lse(scores, i / 2, i % 2, low);
        if (params.lse_low) ((float*)params.lse_low)[of_lse + row] = low;
      }
    }
    T* const out = (T*)params.out + batch * params.out_stride.dim[0] + head * params.out_stride.dim[1] +
                   s.q_start * params.out_stride.dim[2];
    store_sums<T, kD>(
        sums, memory, warp_row, (int)p.Ev, access.out.is_aligned,
        [&](int m, int half) { return softmax.inverse(m, half) * (drops ? (float)p.keep_scale : 1.0f); },
        [&](int row) {
          const int at = first_row + warp_row + row;
          return at < s.seqlen_q ? out + at * params.out_stride.dim[2] : nullptr;
        });
  }
};

}  // namespace

Status attention_fwd(const DeviceAttentionFwd& p, void* stream) {
  const Attention& of = p.at.of;
  if (!of.B || !of.H || !p.at.longest_q) return {nullptr};
  return for_call(of, [&](auto element, auto d, auto plain) -> Status {
    typedef Forward<decltype(element), decltype(d)::value, decltype(plain)::value> K;
    const int64_t tiles = blocks_for(p.at.longest_q, K::Tile::kRows);
    if (is_past_grid(tiles, of.B * of.H)) return kTooMany;
    return launch<K>(dim3((unsigned)(tiles * of.B * of.H)), K::Tile::kShared, (Stream)stream, p, how_to_access(p),
                     (int)tiles);
  });
}

}  // namespace pf::cuda::attention
