// What happens to a tile of scores besides the product: softcap, ALiBi, masks, windows, dropout.
// A tile is [keys][queries], queries in the lanes.
#pragma once
#include "../simd/philox.h"
#include "pack.h"

namespace PF_ISA::attention {

namespace {

// A block of query rows that read the same keys. Where a group of query heads shares them and rows are few, rows of
// several heads stand side by side: a block is a piece of the group's (head, i) pairs.
template <class A>
struct QueryBlock {
  static constexpr int size = kQueries<A>;
  int64_t count, batch;
  int64_t head[size], i[size];  // of each lane; the last row is repeated from `count` on
  int64_t i_min, i_max;
  bool same_head;

  // Rows [first, first + count) of the pairs; `rows` is L.
  void set(int64_t b, int64_t first_head, int64_t first, int64_t n, int64_t rows) {
    batch = b, count = n, i_min = rows, i_max = 0;
    int64_t of_head = first_head + first / rows, row = first % rows;
    for (int lane = 0; lane < size; lane++) {
      head[lane] = of_head, i[lane] = row;
      i_min = min_of(i_min, row), i_max = max_of(i_max, row);
      if (lane + 1 < n && ++row == rows) row = 0, of_head++;
    }
    same_head = head[0] == head[size - 1];
  }
};

// Keys that some row of the block sees: [begin, end).
struct KeyRange {
  int64_t begin, end;
};
template <class A>
PF_INLINE KeyRange visible_keys(const Attention& p, const QueryBlock<A>& rows) {
  KeyRange range = {0, p.S};
  if (p.window_left >= 0) range.begin = max_of(0, rows.i_min + p.diagonal - p.window_left);
  if (p.window_right >= 0) range.end = max_of(0, min_of(p.S, rows.i_max + p.diagonal + p.window_right + 1));
  range.begin = min_of(range.begin, range.end);
  return range;
}

// ---- masks ----------------------------------------------------------------------------------------------------------
struct boolean {
  uint8_t attend;
};
template <class A>
constexpr A kMinusInfinity = -(A)__builtin_inf();

// A mask element as what is added to a score.
template <class A, class M>
PF_INLINE A bias_of(const M* p) {
  return (A)get(p);
}
template <class A>
PF_INLINE A bias_of(const boolean* p) {
  return p->attend ? A(0) : kMinusInfinity<A>;
}
// A vector of them, with any stride.
template <class A, class M>
__attribute__((noinline)) Vec<A> gather_bias(const M* p, int64_t stride, int64_t count) {
  A buffer[kLanes<A>] __attribute__((aligned(64)));
#pragma GCC unroll 1
  for (int i = 0; i < kLanes<A>; i++) buffer[i] = i < count ? bias_of<A>(p + i * stride) : A(0);
  return *(const Vec<A>*)buffer;
}
template <class A, class M>
PF_INLINE Vec<A> load_bias(const M* p, int64_t stride, int64_t count) {
  if constexpr (sizeof(M) == 1) {
    typedef uint8_t bytes __attribute__((vector_size(kLanes<A>), aligned(1), may_alias));
    if (stride == 1 && count >= kLanes<A>) {
      auto attend = __builtin_convertvector(*(const bytes*)p, Lanes<Vec<A>>) != 0;
      return select(attend, Vec<A>{}, splat<Vec<A>>(kMinusInfinity<A>));
    }
  } else {
    if (stride == 1 && count >= kLanes<A>) return load(p);
  }
  return gather_bias<A>(p, stride, count);
}

template <class F>
PF_INLINE void for_mask_type(MaskType type, F f) {
  if (type == MaskType::boolean) return f(boolean{});
  if (type != MaskType::none) for_dtype((Dtype)type, f);
}

// scores += mask, for keys [first, first + keys).
template <class A, class M>
__attribute__((noinline)) void add_mask(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys,
                                        A* scores) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
  const int64_t *stride = p.mask_stride.dim, step = stride[3];
  const M* base = (const M*)p.mask + rows.batch * stride[0] + first * step;
  auto row_of = [&](int lane) { return base + rows.head[lane] * stride[1] + rows.i[lane] * stride[2]; };
  if (stride[2] == 0 && (rows.same_head || stride[1] == 0)) {  // one row for all, as key padding
    for (int64_t key = 0; key < keys; key++) {
      V bias = splat<V>(bias_of<A>(row_of(0) + key * step));
      PF_UNROLL
      for (int j = 0; j < kTileVectors; j++) {
        A* at = scores + key * queries + j * n;
        store(at, load(at) + bias);
      }
    }
    return;
  }
  for (int j = 0; j < kTileVectors; j++) {
    for (int64_t key = 0; key < keys; key += n) {
      V bias[n];
      for (int i = 0; i < n; i++) {
        bias[i] = load_bias<A>(row_of(j * n + i) + key * step, step, keys - key);
      }
      transpose_in_memory(bias);
      for (int i = 0; i < n; i++) {
        A* at = scores + (key + i) * queries + j * n;
        if (key + i < keys) store(at, load(at) + bias[i]);
      }
    }
  }
}

// ---- positions ------------------------------------------------------------------------------------------------------
template <class A>
__attribute__((noinline)) void add_alibi(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys,
                                         A* scores) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>, queries = kQueries<A>;
  A slope[queries] __attribute__((aligned(64))), at[queries] __attribute__((aligned(64)));
  for (int lane = 0; lane < queries; lane++) {
    slope[lane] = ((const A*)p.alibi_slopes)[rows.batch * p.alibi_stride[0] + rows.head[lane] * p.alibi_stride[1]];
    at[lane] = (A)(rows.i[lane] + p.diagonal);
  }
  for (int64_t key = 0; key < keys; key++) {
    PF_UNROLL
    for (int j = 0; j < kTileVectors; j++) {
      A* score = scores + key * queries + j * n;
      store(score, load(score) - load(slope + j * n) * abs(load(at + j * n) - splat<V>((A)(first + key))));
    }
  }
}

// Keys outside the window get -inf, whatever was there.
template <class A>
__attribute__((noinline)) void hide_outside_window(const Attention& p, const QueryBlock<A>& rows, int64_t first,
                                                   int64_t keys, A* scores) {
  typedef Vec<A> V;
  typedef Lanes<V> I;
  typedef Element<V> T;
  constexpr int n = kLanes<T>, queries = kQueries<A>;
  I from[kTileVectors], to[kTileVectors];
  for (int lane = 0; lane < queries; lane++) {
    int64_t centre = rows.i[lane] + p.diagonal - first;
    from[lane / n][lane % n] = p.window_left >= 0 ? max_of(centre - p.window_left, 0) : 0;
    to[lane / n][lane % n] = p.window_right >= 0 ? min_of(centre + p.window_right, keys) : keys;
  }
  for (int64_t key = 0; key < keys; key++) {
    I at = I{} + (decltype(from[0][0] + 0))key;
    PF_UNROLL
    for (int j = 0; j < kTileVectors; j++) {
      T* score = scores + key * queries + j * n;
      store(score, select((at >= from[j]) & (at <= to[j]), load(score), splat<V>(kMinusInfinity<T>)));
    }
  }
}

// scores = softcap tanh(scores / softcap); the derivative goes to `slope` unless that is null.
template <class A>
__attribute__((noinline)) void softcap_scores(A softcap, int64_t keys, A* scores, A* slope) {
  typedef Vec<A> V;
  for (int64_t i = 0; i < keys * kQueries<A>; i += kLanes<A>) {
    V t = tanh(load(scores + i) / softcap);
    store(scores + i, t * softcap);
    if (slope) store(slope + i, splat<V>(1) - t * t);
  }
}

// Do the windows' edges cross this tile?
template <class A>
PF_INLINE bool crosses_window(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys) {
  const bool left = p.window_left >= 0 && first < rows.i_max + p.diagonal - p.window_left;
  const bool right = p.window_right >= 0 && first + keys - 1 > rows.i_min + p.diagonal + p.window_right;
  return left || right;
}

// Is there anything for finish_scores to do?
template <class A>
PF_INLINE bool changes_scores(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys) {
  return p.softcap != 0 || p.alibi_slopes || p.mask || crosses_window(p, rows, first, keys);
}

// Everything after scale * k q^T. `slope` as in softcap_scores.
template <class A>
PF_INLINE void finish_scores(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys, A* scores,
                             A* slope) {
  if (p.softcap != 0) softcap_scores<A>((A)p.softcap, keys, scores, slope);
  if (p.alibi_slopes) add_alibi<A>(p, rows, first, keys, scores);
  if (p.mask) {
    for_mask_type(p.mask_type, [&](auto type) {
      typedef decltype(type) M;  // Python converts other types
      if constexpr (sizeof(M) == 1 || sizeof(Acc<M>) == sizeof(A)) add_mask<A, M>(p, rows, first, keys, scores);
    });
  }
  if (crosses_window(p, rows, first, keys)) hide_outside_window<A>(p, rows, first, keys, scores);
}

// ---- dropout --------------------------------------------------------------------------------------------------------
// factors[key][query] = 1 / (1 - p) or 0: one generator call makes 4 keys of a vector of queries.
template <class A>
__attribute__((noinline)) void dropout_factors(const Attention& p, const QueryBlock<A>& rows, int64_t first,
                                               int64_t keys, A* factors) {
  constexpr int queries = kQueries<A>;
  const uint32_t drop_below = p.drop_below;
  const A kept = (A)p.keep_scale;
  for (int lane = 0; lane < queries; lane += kF32) {
    vu row, head;
    for (int i = 0; i < kF32; i++) {
      row[i] = (uint32_t)rows.i[lane + i];
      head[i] = (uint32_t)(p.first_head + rows.batch * p.H + rows.head[lane + i]);
    }
    for (int64_t block = first / 4; block * 4 < first + keys; block++) {
      vu words[4];
      philox4x32(vu{} + (uint32_t)block, row, head, vu{}, (uint32_t)p.seed, (uint32_t)(p.seed >> 32), words);
      for (int w = 0; w < 4; w++) {
        int64_t key = block * 4 + w - first;
        if (key < 0 || key >= keys) continue;
        A* to = factors + key * queries + lane;
        if constexpr (sizeof(A) == 4) {
          store(to, select(words[w] >= drop_below, splat<vf>(kept), vf{}));
        } else {
          for (int i = 0; i < kF32; i++) to[i] = words[w][i] >= drop_below ? kept : A(0);
        }
      }
    }
  }
}

}  // namespace

}  // namespace PF_ISA::attention
