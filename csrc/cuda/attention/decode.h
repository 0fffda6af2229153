// Attention of a few queries over long caches. The keys are cut into parts, each of which a block folds; the query
// heads that share a key head are rows of one tile, so that a cache is read once. Parts are softmaxes of their own, and
// combined by exp2(lse - total), in an order that never changes. Dao et al. 2023, "Flash-Decoding for long-context
// inference".
#pragma once
#include "forward.h"

namespace pf::cuda::attention {

namespace {

template <int kD>
struct DecodeTile {
  static constexpr int kRowTiles = 1, kWarpRows = 16, kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kD <= 128 ? 64 : 16;  // with 32 ptxas for sm_100 spills
};

// The rows of one tensor of a cache: of a batch, or in blocks of a pool that a table names.
template <class T>
struct CacheRows {
  const T* first;
  int64_t block_stride, row_stride;
  const void* blocks;  // of this batch; null: rows lie one after another
  int block_bytes, block_size, num_blocks;
  Access how;

  __device__ __forceinline__ CacheRows(const DeviceAttentionDecode& p, const void* tensor, const Strides4& stride,
                                       int batch, int head, const Access& how)
      : first((const T*)tensor + head * stride.dim[1]),
        block_stride(stride.dim[0]),
        row_stride(stride.dim[2]),
        blocks(p.block_table),
        block_bytes(p.block_bytes),
        block_size((int)p.block_size),
        num_blocks((int)p.num_blocks),
        how(how) {
    if (blocks)
      blocks = (const char*)blocks + batch * p.max_blocks * block_bytes;
    else
      first += batch * block_stride;
  }
  __device__ __forceinline__ const T* at(int key) const {
    if (!blocks) return first + key * row_stride;
    const int page = key / block_size, block = index_at(blocks, block_bytes, page, num_blocks - 1);
    return first + block * block_stride + (key - page * block_size) * row_stride;
  }
  template <int kRows, int kD>
  __device__ __forceinline__ void load(T* to, int from, int keys, int columns) const {
    load_tile<kRows, kD>(to, columns, how, [&](int row) { return from + row < keys ? at(from + row) : nullptr; });
  }
};
template <class T>
struct Cache {
  CacheRows<T> k, v;

  template <int kRows, int kD>
  __device__ __forceinline__ void load_keys(T* to, int first, int keys, int columns) const {
    k.template load<kRows, kD>(to, first, keys, columns);
  }
  template <int kRows, int kD>
  __device__ __forceinline__ void load_values(T* to, int first, int keys, int columns) const {
    v.template load<kRows, kD>(to, first, keys, columns);
  }
};

// The keys' bytes decide its time: scores of every kind take one way.
template <class T, int kD>
struct DecodePart : Kernel<kThreads, 2> {
  typedef DecodeTile<kD> Tile;
  static constexpr int kShared = (Tile::kRows + 2 * Tile::kKeys) * kD * 2;

  // tiles: of the rows of a key head, times the parts.
  __device__ void operator()(DeviceAttentionDecode params, ForwardAccess access, int tiles) const {
    PF_DYNAMIC_SHARED(T, memory);
    const Attention& p = params.fwd.at.of;
    const Place place = place_of(tiles, (int)p.Hkv);
    const int batch = place.batch, splits = (int)params.splits, split = place.tile % splits, few = (int)p.L;
    const int group = (int)(p.H / p.Hkv), members = group * few, first_member = place.tile / splits * Tile::kRows;
    const Sequence s = sequence_of(params.fwd.at, batch);
    const int lane = (int)threadIdx.x % kWarp, warp_row = (int)threadIdx.x / kWarp * Tile::kWarpRows;
    auto member_of = [&](int half) { return first_member + warp_row + 8 * half + lane / 4; };
    auto head_of = [&](int member) { return place.head * group + member / few; };

    const Scores<T, false> scores(p, s, batch, 0);
    float slopes[2] = {};
    PF_UNROLL_ALL
    for (int half = 0; half < 2; half++)
      if (member_of(half) < members) slopes[half] = scores.slope_of(batch, head_of(member_of(half)));
    const Cache<T> of = {{params, p.k, p.k_stride, batch, place.head, access.k},
                         {params, p.v, p.v_stride, batch, place.head, access.v}};
    Met met = keys_of(p, s, 0, few - 1);
    const int begin = split * (int)params.split_len;
    met.begin = larger(met.begin, begin);
    met.end = smaller(met.end, begin + (int)params.split_len);

    float sums[1][kD / 8][4] = {};
    RunningSoftmax<1> softmax;
    attend<T, kD, false, Tile>(
        sums, softmax, memory, scores, nullptr, of, met, first_member + warp_row < members,
        [&] {
          load_tile<Tile::kRows, kD>(memory, (int)p.E, access.q, [&](int row) {
            const int member = first_member + row;
            const T* const q = (const T*)p.q + batch * p.q_stride.dim[0];
            return member < members ? q + head_of(member) * p.q_stride.dim[1] + member % few * p.q_stride.dim[2]
                                    : nullptr;
          });
        },
        [&](int, int half) { return member_of(half) % few; }, [&](int, int half) { return slopes[half]; });

    PF_UNROLL_ALL
    for (int half = 0; half < 2; half++) {
      const int member = member_of(half);
      if (member >= members) continue;
      const int64_t part = ((batch * p.H + head_of(member)) * few + member % few) * splits + split;
      if (lane % 4 == 0)
        ((float*)params.part_lse)[part] = softmax.is_empty(0, half)
                                              ? -infinity<float>()
                                              : scores.in_log2(softmax.top[0][half]) + log2f(softmax.sum[0][half]);
      float* const out = (float*)params.part_out + part * p.Ev;
      const float by = softmax.inverse(0, half);
      PF_UNROLL_ALL
      for (int n = 0; n < kD / 8; n++) PF_UNROLL_ALL
      for (int i = 0; i < 2; i++) {
        const int column = 8 * n + lane % 4 * 2 + i;
        if (column < (int)p.Ev) out[column] = sums[0][n][2 * half + i] * by;
      }
    }
  }
};

// A warp has a query.
template <class T>
struct DecodeCombine : Kernel<kThreads> {
  __device__ void operator()(DeviceAttentionDecode params) const {
    const Attention& p = params.fwd.at.of;
    const int64_t query = (int64_t)blockIdx.x * kWarps + threadIdx.x / kWarp;
    if (query >= p.B * p.H * p.L) return;
    const int lane = (int)threadIdx.x % kWarp, splits = (int)params.splits;
    const float* const lse = (const float*)params.part_lse + query * splits;
    float largest = -infinity<float>(), sum = 0;
    for (int i = lane; i < splits; i += kWarp) largest = fmaxf(largest, lse[i]);
    largest = over_warp(largest, Maximum());
    if (largest == -infinity<float>()) largest = 0;
    for (int i = lane; i < splits; i += kWarp) sum += exp2f(lse[i] - largest);
    const float total = largest + log2f(over_warp(sum, Sum()));  // -inf where there are no keys
    const int64_t row = query % p.L, head = query / p.L % p.H, batch = query / p.L / p.H;
    const Strides4& stride = params.fwd.out_stride;
    T* const out = (T*)params.fwd.out + batch * stride.dim[0] + head * stride.dim[1] + row * stride.dim[2];
    for (int column = lane; column < (int)p.Ev; column += kWarp) {
      const float* const parts = (const float*)params.part_out + query * splits * p.Ev + column;
      float value = 0;
      for (int i = 0; i < splits; i++)
        if (lse[i] != -infinity<float>()) value += exp2f(lse[i] - total) * parts[i * p.Ev];
      out[column] = from_float<T>(value);
    }
    if (lane == 0) ((float*)params.fwd.lse)[query] = total * kLn2;
  }
};

}  // namespace

Status attention_decode(const DeviceAttentionDecode& p, void* stream) {
  const Attention& of = p.fwd.at.of;
  const int64_t queries = of.B * of.H * of.L;
  if (!queries) return {nullptr};
  return for_width(of, [&](auto element, auto d) -> Status {
    typedef decltype(element) T;
    typedef DecodePart<T, decltype(d)::value> Part;
    const int64_t tiles = blocks_for(of.H / of.Hkv * of.L, Part::Tile::kRows) * p.splits;
    if (is_past_grid(tiles, of.B * of.Hkv)) return kTooMany;
    const Status status = launch<Part>(dim3((unsigned)(tiles * of.B * of.Hkv)), Part::kShared, (Stream)stream, p,
                                       how_to_access(p.fwd), (int)tiles);
    if (status.error) return status;
    return launch<DecodeCombine<T>>(dim3(blocks_for(queries, kWarps)), 0, (Stream)stream, p);
  });
}

}  // namespace pf::cuda::attention
