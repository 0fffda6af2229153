// y = activation(x weight^T + bias): gemm.h with B = weight^T.

namespace {

template <class S>
PF_INLINE Gemm<S> linear_gemm(const LinearFwd& p) {
  return {(const S*)p.x,
          p.x_row_stride,
          p.x_column_stride,
          (const S*)p.weight,
          p.weight_column_stride,
          p.weight_row_stride,
          (const Acc<S>*)p.packed,
          p.m,
          p.n,
          p.k};
}

struct NoActivation {
  template <class V>
  PF_INLINE V forward(V x) {
    return x;
  }
};

template <class F>
PF_INLINE void for_optional_activation(int activation, F f) {
  if (activation < 0) return f(NoActivation{});
  for_activation(activation, f);
}

template <class S, class Act>
struct LinearElement {
  const S* bias;
  int64_t bias_row_stride;
  S *y, *preact;
  int64_t n;
  inline __attribute__((always_inline)) const S* place(int64_t row, int64_t column) const {
    return y + row * n + column;
  }
  inline __attribute__((always_inline)) void operator()(int64_t row, int64_t column, Vec<Acc<S>> z,
                                                        int64_t count) const {
    if (bias) z += load_n(bias + row * bias_row_stride + column, count);
    const int64_t at = row * n + column;
    if (preact) store_n(preact + at, z, count);
    store_n(y + at, Act::forward(z), count);
  }
};

PF_INLINE uint64_t mix(uint64_t h) {  // the finalizer of SplitMix64
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return h ^ (h >> 31);
}

}  // namespace

void linear_fwd(const LinearFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_optional_activation(p.activation, [&](auto act) {
      LinearElement<S, decltype(act)> element{(const S*)p.bias, p.bias_row_stride, (S*)p.y, (S*)p.preact, p.n};
      gemm(linear_gemm<S>(p), p.workspace, gemm_sink<Acc<S>>(element), num_threads);
    });
  });
}

void linear_pack(const LinearPack& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    gemm_pack_b((const S*)p.weight, p.weight_column_stride, p.weight_row_stride, p.k, p.n, (Acc<S>*)p.packed,
                num_threads);
  });
}

void linear_sizes(const LinearSizes& p, int num_threads) {
  for_dtype(p.fwd.dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Acc<S>;
    *p.packed_bytes = round_up(p.fwd.n, kPanel<T>) * p.fwd.k * sizeof(T);
    *p.workspace_bytes = GemmPlan<S>::bytes(GemmPlan<S>::plan(linear_gemm<S>(p.fwd), num_threads));
  });
}

void fingerprint(const Fingerprint& p, int) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const S* data = (const S*)p.data;
    const int64_t elements = p.rows * p.columns;
    const bool every = elements <= p.samples;
    const int64_t count = every ? elements : p.samples;
    const bool is_dense = p.row_stride == p.columns * p.column_stride;
    const uint64_t part = every ? 1 << 16 : ((uint64_t)elements << 16) / (uint64_t)count;  // elements, in 2^-16
    auto find = [&](int64_t i) {
      // One place in each of `count` equal parts, at a fixed random offset: equal steps would see one column only.
      uint64_t offset = every ? 0 : (uint64_t)(((unsigned __int128)part * (uint32_t)mix(i)) >> 32);
      int64_t at = (int64_t)((i * part + offset) >> 16);
      return is_dense ? at * p.column_stride : at / p.columns * p.row_stride + at % p.columns * p.column_stride;
    };
    if (p.places && !p.is_found)
      for (int64_t i = 0; i < count; i++) p.places[i] = find(i);
    uint64_t hash[4] = {1, 2, 3, 4};  // four chains hide the latency of the multiplication
    for (int64_t i = 0; i < count; i++) {
      uint64_t bits = 0;
      memcpy(&bits, data + (p.places ? p.places[i] : find(i)), sizeof(S));
      hash[i % 4] = (hash[i % 4] ^ bits) * 0x9e3779b97f4a7c15ull;
      hash[i % 4] ^= hash[i % 4] >> 29;
    }
    *p.hash = mix(hash[0] ^ mix(hash[1] ^ mix(hash[2] ^ mix(hash[3]))));
  });
}
