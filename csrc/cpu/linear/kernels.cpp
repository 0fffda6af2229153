// y = activation(x weight^T + bias): gemm/gemm.h with B = weight^T.
#include "../../common/linear.h"
#include "../gemm/gemm.h"
#include "../pointwise/activations.h"

namespace PF_ISA::linear {

namespace {

template <class S>
PF_INLINE gemm::Product<S> product_of(const LinearFwd& p) {
  return {(const S*)p.x,
          p.x_row_stride,
          p.x_column_stride,
          (const S*)p.weight,
          p.weight_column_stride,
          p.weight_row_stride,
          nullptr,
          p.m,
          p.n,
          p.k};
}

struct NoActivation {
  template <class V>
  PF_MEMBER V forward(V x) const {
    return x;
  }
};

template <class F>
PF_INLINE void for_optional_activation(const Activation& activation, F f) {
  if (activation.row < 0) return f(NoActivation{});
  pointwise::for_activation(activation, f);
}

template <class S, class Act>
struct Epilogue {
  const S* bias;
  int64_t bias_row_stride;
  S *y, *preact;
  int64_t n;
  Act act;
  inline __attribute__((always_inline)) const S* place(int64_t row, int64_t column) const {
    return y + row * n + column;
  }
  inline __attribute__((always_inline)) void operator()(int64_t row, int64_t column, Vec<Acc<S>> z,
                                                        int64_t count) const {
    if (bias) z += load_n(bias + row * bias_row_stride + column, count);
    const int64_t at = row * n + column;
    if (preact) store_n(preact + at, z, count);
    store_n(y + at, act.forward(z), count);
  }
};

}  // namespace

void fwd(const LinearFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_optional_activation(p.activation, [&](auto act) {
      Epilogue<S, decltype(act)> element{(const S*)p.bias, p.bias_row_stride, (S*)p.y, (S*)p.preact, p.n, act};
      gemm::multiply(product_of<S>(p), p.workspace, gemm::sink_of<Acc<S>>(element), num_threads);
    });
  });
}

void sums(const LinearFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Acc<S>;
    Epilogue<T, NoActivation> element{(const T*)p.bias, p.bias_row_stride, (T*)p.y, nullptr, p.n, {}};
    gemm::multiply(product_of<S>(p), p.workspace, gemm::sink_of<T>(element), num_threads);
  });
}

void sizes(const LinearSizes& p, int num_threads) {
  for_dtype(p.fwd.dtype, [&](auto storage) {
    using S = decltype(storage);
    *p.workspace_bytes = gemm::Plan<S>::bytes(gemm::Plan<S>::plan(product_of<S>(p.fwd), num_threads));
  });
}

}  // namespace PF_ISA::linear
