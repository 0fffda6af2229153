// Few queries, many keys: the work is reading K and V once. With so few rows the lanes hold columns instead of queries,
// and the keys are cut into chunks for the threads (Dao et al. 2023, "Flash-Decoding"); the chunks depend on the shape
// only, so the result does not depend on the number of threads.
#pragma once
#include "forward.h"

namespace PF_ISA::attention {

namespace {

constexpr int64_t kFewRows = 8;  // at most; from about 12 rows of float on, queries in the lanes win
constexpr int64_t kChunk = 1024;
// Keys of a tile: of 128, the switching between K and V cost a tenth of the time from memory.
constexpr int64_t kFewKeys = 512;
static_assert(kFewKeys % kF32 == 0, "scores are stored in whole vectors");

template <class A>
struct DecodeScratch {
  A *q, *scores, *tile, *out;
  DecodeScratch(Carver& from, int64_t E, int64_t Ev) {
    q = from.take<A>(kFewRows * round_up(E, kLanes<A>));
    scores = from.take<A>(kFewRows * kFewKeys);
    tile = from.take<A>(kFewKeys * kQueries<A>);
    out = from.take<A>(kFewRows * round_up(Ev, kLanes<A>));
  }
};

// What each chunk found for each row: maximum, sum, and the unscaled output.
template <class A>
struct DecodeWorkspace {
  A *max, *sum, *out;
  char* threads;
  template <class Sizes>
  DecodeWorkspace(Carver& from, const Sizes& p, int num_threads) {
    int64_t parts = p.B * p.H * p.L * ceil_div(p.S, kChunk);
    max = from.take<A>(parts);
    sum = from.take<A>(parts);
    out = from.take<A>(parts * round_up(p.Ev, kLanes<A>));
    threads = from.take<char>(0);
    for (int thread = 0; thread < num_threads; thread++) DecodeScratch<A>(from, p.E, p.Ev);
  }
};

// f(size, row) for groups of rows that share what is loaded: as many as leave registers for their sums.
template <int kRows>
struct RowGroup {
  static constexpr int size = kRows;
};
template <class F>
PF_INLINE void for_row_groups(int64_t rows, F f) {
  int64_t row = 0;
#if PF_VECTOR_BYTES == 64
  for (; row + 4 <= rows; row += 4) f(RowGroup<4>{}, row);
#endif
  for (; row + 2 <= rows; row += 2) f(RowGroup<2>{}, row);
  if (row < rows) f(RowGroup<1>{}, row);
}

// Columns [col, col + n) of a row, zeros after the last.
template <bool kAdjacent, class S>
PF_INLINE Vec<Acc<S>> load_columns(const S* row, int64_t step, int64_t col, int64_t cols) {
  if (kAdjacent) return load_n(row + col, cols - col);
  return gather(row + col * step, step, cols - col);
}

// sums[row][i]: vectors of partial sums of q[row] . k[i], for n keys, of which those from `count` on are the last
// again. Key by key, as they lie in memory: with four keys side by side the processor's prefetching fell to a third.
template <int kRows, bool kAdjacent, class S>
PF_INLINE void partial_scores(const S* k, const Strides4& stride, int64_t count, int64_t cols, const Acc<S>* q,
                              Vec<Acc<S>> (*sums)[kLanes<Acc<S>>]) {
  typedef Vec<Acc<S>> V;
  constexpr int n = kLanes<Acc<S>>;
  const int64_t width = round_up(cols, n), whole = kAdjacent ? cols / n * n : 0;
  for (int i = 0; i < n; i++) {
    const S* key = k + min_of(i, count - 1) * stride.dim[2];
    V acc[kRows];
    PF_UNROLL
    for (int row = 0; row < kRows; row++) acc[row] = V{};
    auto add = [&](int64_t col, V x) {
      PF_UNROLL
      for (int row = 0; row < kRows; row++) acc[row] = fma(x, load(q + row * width + col), acc[row]);
    };
    for (int64_t col = 0; col < whole; col += n) add(col, load(key + col));
    for (int64_t col = whole; col < cols; col += n) add(col, load_columns<kAdjacent>(key, stride.dim[3], col, cols));
    PF_UNROLL
    for (int row = 0; row < kRows; row++) sums[row][i] = acc[row];
  }
}

// scores[row][key] = q[row] . k[key], -inf after the last key of a vector.
template <class S, bool kAdjacent>
__attribute__((noinline)) void few_scores(const S* k, const Strides4& stride, int64_t keys, int64_t rows, int64_t cols,
                                          const Acc<S>* q, Acc<S>* scores) {
  typedef Acc<S> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  const int64_t width = round_up(cols, n);
  for (int64_t key = 0; key < keys; key += n) {
    const int64_t count = min_of(n, keys - key);
    for_row_groups(rows, [&](auto group, int64_t first) {
      V sums[group.size][n];
      partial_scores<group.size, kAdjacent>(k + key * stride.dim[2], stride, count, cols, q + first * width, sums);
      PF_UNROLL
      for (int row = 0; row < group.size; row++) {
        V sum = sum_each_row(sums[row]);
        const Lanes<V> lane = lane_index<V>();
        if (count < n) sum = select(lane < (decltype(lane[0] + 0))count, sum, splat<V>(kMinusInfinity<A>));
        store(scores + (first + row) * kFewKeys + key, sum);
      }
    });
  }
}

// What depends on positions is written for tiles with the queries in the lanes: there and back.
template <class A>
__attribute__((noinline)) void finish_few_scores(const Attention& p, const QueryBlock<A>& rows, int64_t first,
                                                 int64_t keys, A* scores, A* tile) {
  constexpr int queries = kQueries<A>;
  for (int64_t key = 0; key < keys; key++)
    for (int64_t lane = 0; lane < queries; lane++)
      tile[key * queries + lane] = lane < rows.count ? scores[lane * kFewKeys + key] : A(0);
  finish_scores<A>(p, rows, first, keys, tile, nullptr);
  for (int64_t row = 0; row < rows.count; row++)
    for (int64_t key = 0; key < keys; key++) scores[row * kFewKeys + key] = tile[key * queries + row];
}

template <class A>
__attribute__((noinline)) void drop_few(const Attention& p, const QueryBlock<A>& rows, int64_t first, int64_t keys,
                                        A* probabilities, A* factors) {
  dropout_factors<A>(p, rows, first, keys, factors);
  for (int64_t row = 0; row < rows.count; row++)
    for (int64_t key = 0; key < keys; key++) probabilities[row * kFewKeys + key] *= factors[key * kQueries<A> + row];
}

// Running statistics of the rows.
template <class A>
struct FewState {
  A max[kFewRows], sum[kFewRows], alpha[kFewRows];
  FewState() {
    for (int row = 0; row < kFewRows; row++) max[row] = kMinusInfinity<A>, sum[row] = 0;
  }
};

// scores -> exp(scores - max); max and sum are brought up to date, and alpha rescales what was summed before.
template <class A>
__attribute__((noinline)) void few_softmax(int64_t keys, int64_t rows, A* scores, FewState<A>& state) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  for (int64_t row = 0; row < rows; row++, scores += kFewKeys) {
    V max = splat<V>(state.max[row]), sum = {};
    for (int64_t key = 0; key < keys; key += n) max = max_fast(load(scores + key), max);
    A lanes[n] __attribute__((aligned(64))), top = state.max[row];
    *(V*)lanes = max;
    for (int i = 0; i < n; i++) top = lanes[i] > top ? lanes[i] : top;
    const V base = safe_maximum(splat<V>(top));
    for (int64_t key = 0; key < keys; key += n) {
      V probability = exp_difference<A>(load(scores + key) - base);
      sum = sum + probability;
      store(scores + key, probability);
    }
    state.alpha[row] = exp_difference<A>(splat<V>(state.max[row]) - base)[0];
    state.max[row] = top;
    state.sum[row] = state.sum[row] * state.alpha[row] + reduce_add(sum);
  }
}

// out[row] = alpha[row] out[row] + sum over keys of p[row][key] v[key], for the columns of kVectors vectors.
template <int kRows, int kVectors, class A, class Load>
PF_INLINE void add_outputs(int64_t keys, const A* p, const A* alpha, A* out, int64_t width, Load load_value) {
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  V acc[kRows][kVectors];
  multiply_tile(acc, keys, RowFactors<A, kRowMajor>{p, kFewKeys}, load_value);
  PF_UNROLL
  for (int row = 0; row < kRows; row++) {
    PF_UNROLL
    for (int j = 0; j < kVectors; j++) {
      A* to = out + row * width + j * n;
      store(to, fma(load(to), splat<V>(alpha[row]), acc[row][j]));
    }
  }
}

template <class S, bool kAdjacent>
__attribute__((noinline)) void few_outputs(const S* v, const Strides4& stride, int64_t keys, int64_t rows, int64_t cols,
                                           const Acc<S>* p, const Acc<S>* alpha, Acc<S>* out) {
  constexpr int n = kLanes<Acc<S>>, vectors = 4;
  const int64_t width = round_up(cols, n), row_step = stride.dim[2];
  for_row_groups(rows, [&](auto group, int64_t row) {
    int64_t col = 0;
    if (kAdjacent) {
      for (; col + vectors * n <= cols; col += vectors * n)
        add_outputs<group.size, vectors>(keys, p + row * kFewKeys, alpha + row, out + row * width + col, width,
                                         [&](int64_t key, int j) {
                                           const S* from = v + key * row_step + col + j * n;
                                           return load(from);
                                         });
    }
    for (; col < cols; col += n)
      add_outputs<group.size, 1>(
          keys, p + row * kFewKeys, alpha + row, out + row * width + col, width,
          [&](int64_t key, int) { return load_columns<kAdjacent>(v + key * row_step, stride.dim[3], col, cols); });
  });
}

// One chunk of keys for the rows that read one key head.
template <class S>
void decode_chunk(const Attention& p, const QueryBlock<Acc<S>>& rows, int64_t kv_head, int64_t chunk,
                  const DecodeScratch<Acc<S>>& scratch, const DecodeWorkspace<Acc<S>>& found) {
  typedef Acc<S> A;
  constexpr int n = kLanes<A>;
  const int64_t width = round_up(p.E, n), width_v = round_up(p.Ev, n), chunks = ceil_div(p.S, kChunk);
  for (int64_t row = 0; row < rows.count; row++) {
    const S* q = at<S>(p.q, p.q_stride, rows.batch, rows.head[row], rows.i[row]);
    for (int64_t col = 0; col < width; col += n)
      store(scratch.q + row * width + col,
            load_strided<S>(q + col * p.q_stride.dim[3], p.q_stride.dim[3], p.E - col) * (A)p.scale);
  }
  memset((void*)scratch.out, 0, rows.count * width_v * sizeof(A));
  FewState<A> state;
  KeyRange range = visible_keys(p, rows);
  const int64_t end = min_of(range.end, (chunk + 1) * kChunk);
  for (int64_t first = max_of(range.begin, chunk * kChunk); first < end; first += kFewKeys) {
    const int64_t keys = min_of(kFewKeys, end - first);
    auto scores = p.k_stride.dim[3] == 1 ? few_scores<S, true> : few_scores<S, false>;
    auto outputs = p.v_stride.dim[3] == 1 ? few_outputs<S, true> : few_outputs<S, false>;
    scores(at<S>(p.k, p.k_stride, rows.batch, kv_head, first), p.k_stride, keys, rows.count, p.E, scratch.q,
           scratch.scores);
    if (changes_scores(p, rows, first, keys)) finish_few_scores<A>(p, rows, first, keys, scratch.scores, scratch.tile);
    few_softmax<A>(keys, rows.count, scratch.scores, state);
    if (p.keep_scale != 1) drop_few<A>(p, rows, first, keys, scratch.scores, scratch.tile);
    outputs(at<S>(p.v, p.v_stride, rows.batch, kv_head, first), p.v_stride, keys, rows.count, p.Ev, scratch.scores,
            state.alpha, scratch.out);
  }
  for (int64_t row = 0; row < rows.count; row++) {
    const int64_t part = ((rows.batch * p.H + rows.head[row]) * p.L + rows.i[row]) * chunks + chunk;
    found.max[part] = state.max[row];
    found.sum[part] = state.sum[row];
    memcpy((void*)(found.out + part * width_v), scratch.out + row * width_v, width_v * sizeof(A));
  }
}

// The chunks of one row, in order.
template <class S>
void combine_chunks(const AttentionFwd& call, int64_t row, const DecodeWorkspace<Acc<S>>& found) {
  typedef Acc<S> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  const Attention& p = call.of;
  const int64_t width = round_up(p.Ev, n), chunks = ceil_div(p.S, kChunk), part = row * chunks;
  double max = -__builtin_inf(), sum = 0;
  bool is_nan = false;
  for (int64_t i = part; i < part + chunks; i++) {
    is_nan |= found.max[i] != found.max[i];
    max = found.max[i] > max ? found.max[i] : max;
  }
  const double base = is_nan ? __builtin_nan("") : max == -__builtin_inf() ? 0 : max;
  for (int64_t i = part; i < part + chunks; i++) {
    found.max[i] = (A)::exp(found.max[i] - base);  // now its weight
    sum += (double)found.max[i] * found.sum[i];
  }
  S* out = (S*)at<S>(call.out, call.out_stride, row / p.L / p.H, row / p.L % p.H, row % p.L);
  for (int64_t col = 0; col < p.Ev; col += n) {
    V total = {};
    for (int64_t i = 0; i < chunks; i++)
      total = fma(load(found.out + (part + i) * width + col), splat<V>(found.max[part + i]), total);
    store_n(out + col, total * splat<V>(sum == 0 ? A(0) : (A)(1 / sum)), p.Ev - col);
  }
  const double log_sum = ::log(sum);
  const A lse = (A)(base + log_sum);
  ((A*)call.lse)[row] = lse;
  if (call.lse_low) ((A*)call.lse_low)[row] = lse - lse == 0 ? (A)((base - lse) + log_sum) : A(0);
}

template <class S>
void decode(const AttentionFwd& call, int num_threads) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  Carver carver = {(char*)call.workspace, 0}, size = {nullptr, 0};
  const DecodeWorkspace<A> found(carver, p, num_threads);
  DecodeScratch<A>(size, p.E, p.Ev);
  const int64_t group = p.H / p.Hkv, chunks = ceil_div(p.S, kChunk);
  parallel_tasks(p.B * p.Hkv * chunks, num_threads, [&](int64_t task, int thread) {
    int64_t unit = task / chunks, kv_head = unit % p.Hkv;
    QueryBlock<A> rows;
    rows.set(unit / p.Hkv, kv_head * group, 0, p.L * group, p.L);
    Carver own = {found.threads + thread * size.used, 0};
    decode_chunk<S>(p, rows, kv_head, task % chunks, DecodeScratch<A>(own, p.E, p.Ev), found);
  });
  for (int64_t row = 0; row < p.B * p.H * p.L; row++) combine_chunks<S>(call, row, found);
}

}  // namespace

}  // namespace PF_ISA::attention
