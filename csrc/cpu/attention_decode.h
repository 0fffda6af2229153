// Few queries, many keys: the work is reading K and V once. With so few rows the lanes hold columns instead of queries,
// and the keys are cut into chunks for the threads (Dao et al. 2023, "Flash-Decoding"); the chunks depend on the shape
// only, so the result does not depend on the number of threads.

namespace {

constexpr int64_t kFewRows = 8;  // at most; from about 12 rows of float on, queries in the lanes win
constexpr int64_t kChunk = 1024;
constexpr int64_t kKeysAhead = 16;  // keys fetched in advance

template <class A>
struct DecodeScratch {
  A *q, *scores, *factors, *out;
  DecodeScratch(Carver& from, int64_t E, int64_t Ev) {
    q = from.take<A>(kFewRows * round_up(E, kLanes<A>));
    scores = from.take<A>(kKeys * kQueries<A>);
    factors = from.take<A>(kKeys * kQueries<A>);
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

// scores[key][row] = q[row] . k[key]: a vector of partial sums a key, then one transposition for a vector of keys.
template <class S>
__attribute__((noinline)) void few_scores(const S* k, const Strides4& stride, int64_t keys, int64_t rows, int64_t cols,
                                          const Acc<S>* q, Acc<S>* scores) {
  typedef Acc<S> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  const int64_t width = round_up(cols, n), row_step = stride.dim[2], step = stride.dim[3];
  for (int64_t key = 0; key < keys; key += n) {
    const int64_t count = min_of(n, keys - key);
    for (int64_t row = 0; row < rows; row++) {
      V sums[n];
      const S* from = k + key * row_step;
      if (count == n && step == 1 && width == cols) {
        for (int i = 0; i < n; i++) {  // in the order of memory: the work is waiting for it
          const S* key_row = from + i * row_step;
          V sum = {};
          for (int64_t col = 0; col < cols; col += n) {
            __builtin_prefetch(key_row + kKeysAhead * row_step + col);
            sum = fma(load(key_row + col), load(q + row * width + col), sum);
          }
          sums[i] = sum;
        }
      } else {
        for (int i = 0; i < n; i++) {
          sums[i] = V{};
          if (i >= count) continue;
          for (int64_t col = 0; col < cols; col += n)
            sums[i] = fma(load_strided<S>(from + i * row_step + col * step, step, cols - col),
                          load(q + row * width + col), sums[i]);
        }
      }
      transpose_in_memory(sums);
      A total[n] __attribute__((aligned(64)));
      V sum = sums[0];
      for (int i = 1; i < n; i++) sum = sum + sums[i];
      *(V*)total = sum;
      for (int i = 0; i < count; i++) scores[(key + i) * kQueries<A> + row] = total[i];
    }
  }
}

// out[row] = alpha[row] out[row] + sum over keys of p[key][row] v[key].
template <class S>
__attribute__((noinline)) void few_outputs(const S* v, const Strides4& stride, int64_t keys, int64_t rows, int64_t cols,
                                           const Acc<S>* p, const Acc<S>* alpha, Acc<S>* out) {
  typedef Acc<S> A;
  typedef Vec<A> V;
  constexpr int n = kLanes<A>;
  const int64_t width = round_up(cols, n), row_step = stride.dim[2], step = stride.dim[3];
  for (int64_t row = 0; row < rows; row++) {
    int64_t col = 0;
    for (; col + 4 * n <= cols && step == 1; col += 4 * n) {
      V acc[4] = {};
      for (int64_t key = 0; key < keys; key++) {
        V weight = splat<V>(p[key * kQueries<A> + row]);
        PF_UNROLL
        for (int i = 0; i < 4; i++) {
          __builtin_prefetch(v + (key + kKeysAhead) * row_step + col + i * n);
          acc[i] = fma(load(v + key * row_step + col + i * n), weight, acc[i]);
        }
      }
      PF_UNROLL
      for (int i = 0; i < 4; i++) {
        A* to = out + row * width + col + i * n;
        store(to, fma(load(to), splat<V>(alpha[row]), acc[i]));
      }
    }
    for (; col < cols; col += n) {
      V acc = {};
      for (int64_t key = 0; key < keys; key++)
        acc = fma(load_strided<S>(v + key * row_step + col * step, step, cols - col),
                  splat<V>(p[key * kQueries<A> + row]), acc);
      A* to = out + row * width + col;
      store(to, fma(load(to), splat<V>(alpha[row]), acc));
    }
  }
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
  memset((void*)scratch.scores, 0, kKeys * kQueries<A> * sizeof(A));  // lanes without a row
  memset((void*)scratch.out, 0, rows.count * width_v * sizeof(A));
  RowState<A> state;
  state.reset();
  KeyRange range = visible_keys(p, rows);
  const int64_t end = min_of(range.end, (chunk + 1) * kChunk);
  for (int64_t first = max_of(range.begin, chunk * kChunk); first < end; first += kKeys) {
    const int64_t keys = min_of(kKeys, end - first);
    few_scores<S>(at<S>(p.k, p.k_stride, rows.batch, kv_head, first), p.k_stride, keys, rows.count, p.E, scratch.q,
                  scratch.scores);
    finish_scores<A>(p, rows, first, keys, scratch.scores, nullptr);
    if (p.dropout_p > 0) dropout_factors<A>(p, rows, first, keys, scratch.factors);
    online_softmax<A>(keys, scratch.scores, p.dropout_p > 0 ? scratch.factors : nullptr, state);
    few_outputs<S>(at<S>(p.v, p.v_stride, rows.batch, kv_head, first), p.v_stride, keys, rows.count, p.Ev,
                   scratch.scores, (const A*)state.alpha, scratch.out);
  }
  for (int64_t row = 0; row < rows.count; row++) {
    const int64_t part = ((rows.batch * p.H + rows.head[row]) * p.L + rows.i[row]) * chunks + chunk;
    found.max[part] = ((const A*)state.max)[row];
    found.sum[part] = ((const A*)state.sum)[row];
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
  ((A*)call.lse)[row] = (A)(base + ::log(sum));
}

template <class S>
void attention_decode_typed(const AttentionFwd& call, int num_threads) {
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
