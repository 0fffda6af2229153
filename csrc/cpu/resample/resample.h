// Each row of the output: the rows that the first axes read, weighted, are summed into one source row, which stays in
// the first cache; from it the last axis takes its taps. A source row that is a row of the input is not copied.
#pragma once
#include "../core/parallel.h"
#include "../simd/permute.h"
#include "plan.h"

namespace PF_ISA::resample {

namespace {

constexpr int kRows = 4;  // that are summed in one pass over the source row

template <bool kStream, class S>
PF_INLINE void store_whole(S* p, Vec<Acc<S>> x) {
  if constexpr (kStream && sizeof(S) == 4)
    store_stream(p, x);
  else
    store(p, x);
}

// to[begin, end) = sum of weight * row, or += it; `to` is written a whole vector at a time.
template <class S, int kCount>
void sum_rows(Acc<S>* to, const S* const* rows, const Acc<S>* weights, int64_t begin, int64_t end, bool is_first) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  V weight[kCount];
  PF_UNROLL
  for (int r = 0; r < kCount; r++) weight[r] = splat<V>(weights[r]);
  int64_t j = begin;
  for (; j + lanes <= end; j += lanes) {
    V sum = is_first ? weight[0] * load(rows[0] + j) : fma(weight[0], load(rows[0] + j), load(to + j));
    PF_UNROLL
    for (int r = 1; r < kCount; r++) sum = fma(weight[r], load(rows[r] + j), sum);
    store(to + j, sum);
  }
  if (j < end) {
    const int64_t n = end - j;
    V sum = is_first ? weight[0] * load_n(rows[0] + j, n) : fma(weight[0], load_n(rows[0] + j, n), load(to + j));
    PF_UNROLL
    for (int r = 1; r < kCount; r++) sum = fma(weight[r], load_n(rows[r] + j, n), sum);
    store(to + j, sum);
  }
}

template <class S>
PF_INLINE void sum_some_rows(Acc<S>* to, const S* const* rows, const Acc<S>* weights, int count, int64_t begin,
                             int64_t end, bool is_first) {
  switch (count) {
    case 1: return sum_rows<S, 1>(to, rows, weights, begin, end, is_first);
    case 2: return sum_rows<S, 2>(to, rows, weights, begin, end, is_first);
    case 3: return sum_rows<S, 3>(to, rows, weights, begin, end, is_first);
    case 4: return sum_rows<S, 4>(to, rows, weights, begin, end, is_first);
  }
}

// sum of weight[t] * pick(t) over the taps of a chunk.
template <class T, int kTaps, bool kUnit, class Pick>
PF_INLINE Vec<T> weighted(const T* weight, int taps, Pick pick) {
  constexpr int lanes = kLanes<T>;
  if (kUnit && kTaps == 1) return pick(0);
  Vec<T> sum = load(weight) * pick(0);
  PF_UNROLL
  for (int t = 1; t < (kTaps ? kTaps : taps); t++) sum = fma(load(weight + t * lanes), pick(t), sum);
  return sum;
}

// Chunks [begin, end) of a row of the output.
template <class S, int kTaps, bool kUnit, bool kStream>
void take_chunks(const Plan<Acc<S>>& plan, const Acc<S>* source, S* y, int64_t begin, int64_t end, Acc<S> fill) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  typedef typename VecOf<T>::mask Mask;
  constexpr int lanes = kLanes<T>;
  for (int64_t c = begin; c < end; c++) {
    const Chunk chunk = plan.chunks[c];
    const int32_t* base = plan.base + chunk.at;
    const int32_t* index = plan.index + chunk.at * (int64_t)lanes;
    const T* weight = kUnit ? nullptr : plan.weight + chunk.at * (int64_t)lanes;
    if (chunk.reach == kAdjacent) {
      const int64_t run = min_of(chunk.run, end - c);
      for (int64_t k = 0; k < run; k++) store_whole<kStream>(y + (c + k) * lanes, load(source + base[0] + k * lanes));
      c += run - 1;
      continue;
    }
    V sum;
    if constexpr (sizeof(T) == 4) {
      if (chunk.reach == kOne)
        sum = weighted<T, kTaps, kUnit>(weight, chunk.taps, [&](int t) {
          return permute(load(source + base[t]), *(const vi_unaligned*)(index + t * lanes));
        });
      else if (chunk.reach == kTwo)
        sum = weighted<T, kTaps, kUnit>(weight, chunk.taps, [&](int t) {
          const T* from = source + base[t];
          return permute(load(from), load(from + lanes), *(const vi_unaligned*)(index + t * lanes));
        });
      else
        sum = weighted<T, kTaps, kUnit>(weight, chunk.taps, [&](int t) {
          return gather(source + base[t], *(const vi_unaligned*)(index + t * lanes));
        });
    } else {
      sum = weighted<T, kTaps, kUnit>(weight, chunk.taps, [&](int t) {
        V picked;
        for (int i = 0; i < lanes; i++) picked[i] = source[base[t] + index[t * lanes + i]];
        return picked;
      });
    }
    if (chunk.has_empty) {
      Mask there;
      memcpy(&there, plan.there + c * lanes, sizeof(there));
      sum = select(there, sum, splat<V>(fill));
    }
    if ((c + 1) * lanes <= plan.width)
      store_whole<kStream>(y + c * lanes, sum);
    else
      store_n(y + c * lanes, sum, plan.width - c * lanes);
  }
}

template <class S, bool kStream>
PF_INLINE void take_row(const Plan<Acc<S>>& plan, const Acc<S>* source, S* y, int64_t begin, int64_t end, Acc<S> fill) {
  if (!plan.weight) return take_chunks<S, 1, true, kStream>(plan, source, y, begin, end, fill);
  switch (plan.taps) {
    case 2: return take_chunks<S, 2, false, kStream>(plan, source, y, begin, end, fill);
    case 4: return take_chunks<S, 4, false, kStream>(plan, source, y, begin, end, fill);
    default: return take_chunks<S, 0, false, kStream>(plan, source, y, begin, end, fill);
  }
}

// One place of `inner` adjacent elements from kCount places; 0: from `count` of them.
template <class S, int kCount, bool kStream>
PF_INLINE void take_place(const int32_t* index, const Acc<S>* weight, int count, int64_t inner, const Acc<S>* source,
                          S* y) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  auto sum_of = [&](auto load_lanes) {
    V sum = load_lanes(source + index[0] * inner);
    if (weight) sum *= weight[0];
    PF_UNROLL
    for (int t = 1; t < (kCount ? kCount : count); t++)
      sum = fma(splat<V>(weight ? weight[t] : (T)1), load_lanes(source + index[t] * inner), sum);
    return sum;
  };
  int64_t j = 0;
  for (; j + lanes <= inner; j += lanes)
    store_whole<kStream>(y + j, sum_of([&](const T* from) { return load(from + j); }));
  if (j < inner) store_n(y + j, sum_of([&](const T* from) { return load_n(from + j, inner - j); }), inner - j);
}

template <class S, bool kStream>
PF_INLINE void fill_row(S* y, int64_t n, Acc<S> fill) {
  typedef Vec<Acc<S>> V;
  constexpr int lanes = kLanes<Acc<S>>;
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) store_whole<kStream>(y + j, splat<V>(fill));
  if (j < n) store_n(y + j, splat<V>(fill), n - j);
}

// Places [begin, end) of a row of the output.
template <class S, bool kStream>
void take_places(const ResampleAxis& axis, int64_t inner, const Acc<S>* source, S* y, int64_t begin, int64_t end,
                 Acc<S> fill) {
  const Acc<S>* weights = (const Acc<S>*)axis.weight;
  for (int64_t o = begin; o < end; o++) {
    const int32_t first = axis.first[o], count = axis.first[o + 1] - first;
    const int32_t* index = axis.index + first;
    const Acc<S>* weight = weights ? weights + first : nullptr;
    S* to = y + o * inner;
    switch (count) {
      case 0: fill_row<S, kStream>(to, inner, fill); break;
      case 1: take_place<S, 1, kStream>(index, weight, 1, inner, source, to); break;
      case 2: take_place<S, 2, kStream>(index, weight, 2, inner, source, to); break;
      case 4: take_place<S, 4, kStream>(index, weight, 4, inner, source, to); break;
      default: take_place<S, 0, kStream>(index, weight, count, inner, source, to); break;
    }
  }
}

struct Range {
  int64_t begin, end;
};

// The elements of the source row that places [begin, end) read, in the vectors in which all of it is summed: how a sum
// is rounded does not depend on where rows are cut.
template <class T>
PF_INLINE Range source_range(const ResampleAxis& axis, int64_t inner, int64_t begin, int64_t end) {
  int64_t low = axis.in, high = 0;
  for (int32_t e = axis.first[begin]; e < axis.first[end]; e++)
    low = min_of(low, axis.index[e]), high = max_of(high, axis.index[e] + 1);
  if (low >= high) return {0, 0};
  return {low * inner / kLanes<T> * kLanes<T>, min_of(axis.in * inner, round_up(high * inner, kLanes<T>))};
}

template <class S>
PF_INLINE Acc<S> weight_of(const ResampleAxis& axis, int32_t entry) {
  return axis.weight ? ((const Acc<S>*)axis.weight)[entry] : (Acc<S>)1;
}

// Is every row of the output taken from one row of the input, as it is?
PF_INLINE bool takes_rows(const Resample& p) {
  return !p.axis[0].weight && !p.axis[1].weight && p.axis[0].taps <= 1 && p.axis[1].taps <= 1;
}

template <class S, bool kStream>
void resample_all(const Resample& p, int threads) {
  typedef Acc<S> T;
  const ResampleAxis &depth = p.axis[0], &height = p.axis[1], &width = p.axis[2];
  const int64_t inner = p.inner, row_in = width.in * inner, row_out = width.out * inner;
  const bool is_folded = inner < kResampleFold, is_direct = sizeof(S) == sizeof(T) && takes_rows(p);
  const T fill = (T)p.fill;
  Carver carver{(char*)p.workspace, 0};
  Plan<T> plan{};
  if (is_folded) plan = plan_axis<T>(width, inner, is_direct ? row_in : row_in + 2 * kResampleLanes, carver);
  const int64_t buffer_bytes = resample_row_bytes(width.in, inner, sizeof(T));
  char* buffers = carver.take<char>(threads * buffer_bytes);

  // A row is cut only where there are few of them.
  const int64_t rows = p.outer * depth.out * height.out, steps = is_folded ? plan.count : width.out;
  const int64_t blocks = rows >= 4 * threads ? 1 : max_of(1, min_of(4 * threads, row_out / 4096));
  const int64_t block = ceil_div(steps, blocks);
  parallel_ranges(
      rows * blocks, max_of(1, kElementwiseGrain / max_of(1, row_out / blocks)), threads,
      [&](int64_t begin, int64_t end) {
        T* buffer = (T*)(buffers + omp_get_thread_num() * buffer_bytes);
        for (int64_t unit = begin; unit < end; unit++) {
          const int64_t row = unit / blocks, first = unit % blocks * block, last = min_of(steps, first + block);
          if (first >= last) continue;
          const int64_t h = row % height.out, slice = row / height.out, d = slice % depth.out, n = slice / depth.out;
          S* y = (S*)p.y + row * row_out;
          const S* x = (const S*)p.x + n * depth.in * height.in * row_in;
          auto row_at = [&](int32_t of_depth, int32_t of_height) {
            return x + (depth.index[of_depth] * height.in + height.index[of_height]) * row_in;
          };
          const int32_t d0 = depth.first[d], d1 = depth.first[d + 1], h0 = height.first[h], h1 = height.first[h + 1];
          if (d0 == d1 || h0 == h1) {
            const int64_t from = is_folded ? first * kLanes<T> : first * inner;
            fill_row<S, kStream>(y + from, (is_folded ? min_of(row_out, last * kLanes<T>) : last * inner) - from, fill);
            continue;
          }
          const T* source = buffer;
          if constexpr (sizeof(S) == sizeof(T)) {
            if (is_direct) source = row_at(d0, h0);
          }
          if (!is_direct) {
            Range needed{0, row_in};
            if (blocks > 1) {
              const int64_t lanes = is_folded ? kLanes<T> : inner;
              needed = source_range<T>(width, inner, first * lanes / inner,
                                       min_of(width.out, ceil_div(last * lanes, inner)));
            }
            const S* some[kRows];
            T weights[kRows];
            int count = 0;
            bool is_first = true;
            for (int32_t i = d0; i < d1; i++)
              for (int32_t j = h0; j < h1; j++) {
                some[count] = row_at(i, j), weights[count++] = weight_of<S>(depth, i) * weight_of<S>(height, j);
                if (count < kRows && (i + 1 < d1 || j + 1 < h1)) continue;
                sum_some_rows<S>(buffer, some, weights, count, needed.begin, needed.end, is_first);
                count = 0, is_first = false;
              }
          }
          if (is_folded)
            take_row<S, kStream>(plan, source, y, first, last, fill);
          else
            take_places<S, kStream>(width, inner, source, y, first, last, fill);
        }
        if (kStream) stream_fence();
      });
}

}  // namespace

void resample(const Resample& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    if constexpr (sizeof(S) == 4) {
      // Past the caches, where a row of the output begins with a vector and ends with one.
      const int64_t row = p.axis[2].out * p.inner, places = p.outer * p.axis[0].out * p.axis[1].out * row;
      const int64_t aligned = p.inner < kResampleFold ? row : p.inner;
      if (places * (int64_t)sizeof(S) >= kStreamBytes && aligned % kF32 == 0 && (uintptr_t)p.y % PF_VECTOR_BYTES == 0)
        return resample_all<S, true>(p, num_threads);
    }
    resample_all<S, false>(p, num_threads);
  });
}

}  // namespace PF_ISA::resample
