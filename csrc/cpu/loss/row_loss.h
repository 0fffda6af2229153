// Losses of rows of two or three tensors: a rule says what is summed over a row, the loss of the sums, and what a
// column's gradients are made of.
#pragma once
#include "../../common/row_loss.h"
#include "../core/parallel.h"
#include "../simd/math.h"
#include "sums.h"

#define PF_MEMBER inline __attribute__((always_inline))

namespace PF_ISA::loss {

namespace {

// b's part in a's gradient and a's in b's, and what each has of its own.
struct Cosine {
  static constexpr int kTensors = 2;
  static constexpr double kEps = 1e-12;  // as torch adds to each square
  double margin;

  template <class V>
  PF_MEMBER void terms(V a, V b, V, V (&to)[kRowLossSums]) const {
    to[0] = a * b, to[1] = a * a, to[2] = b * b;
  }
  static double cosine(const double* sums) { return sums[0] / __builtin_sqrt((sums[1] + kEps) * (sums[2] + kEps)); }
  double loss(const double* sums, double target) const {
    const double cos = cosine(sums), above = cos - margin;
    return target == 1 ? 1 - cos : target == -1 ? (above < 0 ? 0 : above) : 0;
  }
  void slopes(const double* sums, double target, double g, double (&to)[kRowLossSums]) const {
    const double cos = cosine(sums), a = sums[1] + kEps, b = sums[2] + kEps;
    const double slope = target == 1 ? -g : target == -1 && cos - margin >= 0 ? g : 0;
    to[0] = slope / __builtin_sqrt(a * b), to[1] = -slope * cos / a, to[2] = -slope * cos / b;
  }
  template <class V>
  PF_MEMBER void gradients(const V (&slopes)[kRowLossSums], V a, V b, V, V (&to)[kRowLossTensors]) const {
    to[0] = slopes[0] * b + slopes[1] * a;
    to[1] = slopes[0] * a + slopes[2] * b;
  }
};

template <bool kIsSquared, bool kIsSwapped>
struct Triplet {
  static constexpr int kTensors = 3;
  double margin, eps;

  template <class V>
  PF_MEMBER void differences(V a, V p, V n, V (&to)[kRowLossSums]) const {
    const V e = constant<V>(eps);
    to[0] = a - p + e, to[1] = a - n + e;
    to[2] = kIsSwapped ? p - n + e : V{};
  }
  template <class V>
  PF_MEMBER void terms(V a, V p, V n, V (&to)[kRowLossSums]) const {
    differences(a, p, n, to);
    PF_UNROLL
    for (V& d : to) d = kIsSquared ? d * d : abs(d);
  }
  static double norm(double sum) { return kIsSquared ? __builtin_sqrt(sum) : sum; }
  static double missing(const double* sums, double margin) {
    const double near = norm(sums[0]), far = norm(sums[1]), other = norm(sums[2]);
    // NaN of either stays
    return margin + near - (kIsSwapped && !(far <= other) && far == far ? other : far);
  }
  double loss(const double* sums, double) const {
    const double z = missing(sums, margin);
    return z < 0 ? 0 : z;
  }
  // Of each norm; where two are the smallest each has half.
  void slopes(const double* sums, double, double g, double (&to)[kRowLossSums]) const {
    const double slope = missing(sums, margin) >= 0 ? g : 0;
    const double far = norm(sums[1]), other = norm(sums[2]);
    const double share = !kIsSwapped || far < other ? 1 : far == other ? 0.5 : 0;
    to[0] = slope, to[1] = -slope * share, to[2] = -slope * (1 - share);
    if (kIsSquared)
      for (int k = 0; k < kRowLossSums; k++) to[k] = sums[k] == 0 ? 0 : to[k] / norm(sums[k]);
  }
  template <class V>
  PF_MEMBER void gradients(const V (&slopes)[kRowLossSums], V a, V p, V n, V (&to)[kRowLossTensors]) const {
    V of[kRowLossSums];
    differences(a, p, n, of);
    PF_UNROLL
    for (int k = 0; k < kRowLossSums; k++) {
      V& d = of[k];
      if (!kIsSquared) d = select(d > V{}, constant<V>(1), select(d < V{}, constant<V>(-1), V{}));
      d *= slopes[k];
    }
    to[0] = of[0] + of[1];
    to[1] = kIsSwapped ? of[2] - of[0] : -of[0];
    to[2] = kIsSwapped ? -of[1] - of[2] : -of[1];
  }
};

template <class F>
PF_INLINE void for_row_rule(const RowLoss& p, F f) {
  if (p.kind == RowLossKind::cosine_embedding) return f(Cosine{p.margin});
  if (p.is_squared)
    return p.is_swapped ? f(Triplet<true, true>{p.margin, p.eps}) : f(Triplet<true, false>{p.margin, p.eps});
  return p.is_swapped ? f(Triplet<false, true>{p.margin, p.eps}) : f(Triplet<false, false>{p.margin, p.eps});
}

// The same row of each tensor; what a rule has none of is the first's, and not read.
template <class S, class Rule>
struct RowOf {
  const S* rows[kRowLossTensors];

  RowOf(const RowLoss& p, int64_t row) {
    for (int k = 0; k < kRowLossTensors; k++)
      rows[k] = k < Rule::kTensors ? (const S*)p.rows[k] + row * p.strides[k] : nullptr;
  }
  // body(a, b, c) of the vectors at column j
  template <class Count, class Body>
  PF_MEMBER void at(int64_t j, Count count, Body body) const {
    typedef Vec<Acc<S>> V;
    V c = V{};
    if constexpr (Rule::kTensors == 3) c = load_part(rows[2] + j, count);
    body(load_part(rows[0] + j, count), load_part(rows[1] + j, count), c);
  }
};

template <class S, class Rule>
void sum_row(const RowLoss& p, const Rule& rule, int64_t row, double* sums) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const RowOf<S, Rule> of(p, row);
  for (int k = 0; k < kRowLossSums; k++) sums[k] = 0;
  for (int64_t j0 = 0; j0 < p.columns; j0 += kSummed) {
    V parts[kRowLossSums][kChains] = {};
    for_columns<T, kChains>(j0, min_of(p.columns, j0 + kSummed), [&](int64_t j, auto count, int chain) {
      of.at(j, count, [&](V a, V b, V c) {
        V terms[kRowLossSums];
        rule.terms(a, b, c, terms);
        PF_UNROLL
        for (int k = 0; k < kRowLossSums; k++) parts[k][chain] += first_lanes(terms[k], count);
      });
    });
    for (int k = 0; k < kRowLossSums; k++) sums[k] += (double)reduce_add(sum_chains(parts[k]));
  }
}

template <class S, class Rule>
void row_gradients(const RowLossBwd& b, const Rule& rule, int64_t row, const double (&slopes)[kRowLossSums]) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const RowLoss& p = b.of;
  const RowOf<S, Rule> of(p, row);
  const V by[kRowLossSums] = {constant<V>(slopes[0]), constant<V>(slopes[1]), constant<V>(slopes[2])};
  S* to[kRowLossTensors];
  for (int k = 0; k < kRowLossTensors; k++) to[k] = b.gradients[k] ? (S*)b.gradients[k] + row * p.columns : nullptr;
  for_columns_down<T>(0, p.columns, [&](int64_t j, auto count) {
    of.at(j, count, [&](V x, V y, V z) {
      V gradients[kRowLossTensors];
      rule.gradients(by, x, y, z, gradients);
      PF_UNROLL
      for (int k = 0; k < Rule::kTensors; k++)
        if (to[k]) store_part(to[k] + j, gradients[k], count);
    });
  });
}

// body(chunk, first row, last row)
template <class Body>
PF_INLINE void for_row_chunks(const RowLoss& p, int threads, Body body) {
  const int64_t rows = row_loss_rows_of_chunk(p.columns);
  parallel_ranges(row_loss_chunks(p.n, p.columns), kChunksOfThread, threads, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; chunk++) body(chunk, chunk * rows, min_of(p.n, (chunk + 1) * rows));
  });
}

PF_INLINE double target_of_row(const RowLoss& p, int64_t row) {
  return p.target ? number_of(p.target, row, p.dtype) : 0;
}

}  // namespace

void row_loss_fwd(const RowLossFwd& f, int num_threads) {
  const RowLoss& p = f.of;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_row_rule(p, [&](auto rule) {
      for_row_chunks(p, num_threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        double sum = 0;
        for (int64_t row = begin; row < end; row++) {
          double* sums = f.sums + row * kRowLossSums;
          sum_row<S>(p, rule, row, sums);
          const double loss = rule.loss(sums, target_of_row(p, row));
          if (p.is_reduced)
            sum += loss;
          else
            put_number(f.loss, row, loss, p.loss_dtype);
        }
        f.chunks[chunk] = sum;
      });
    });
  });
  if (!p.is_reduced) return;
  double sum = 0;
  for (int64_t i = 0; i < row_loss_chunks(p.n, p.columns); i++) sum += f.chunks[i];
  put_number(f.loss, 0, sum / f.divisor, p.loss_dtype);
}

void row_loss_bwd(const RowLossBwd& b, int num_threads) {
  const RowLoss& p = b.of;
  const double shared = p.is_reduced ? number_of(b.dloss, 0, p.loss_dtype) / b.divisor : 0;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_row_rule(p, [&](auto rule) {
      for_row_chunks(p, num_threads, [&](int64_t, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
          const double g = p.is_reduced ? shared : number_of(b.dloss, row, p.loss_dtype);
          double slopes[kRowLossSums];
          rule.slopes(b.sums + row * kRowLossSums, target_of_row(p, row), g, slopes);
          row_gradients<S>(b, rule, row, slopes);
        }
      });
    });
  });
}

}  // namespace PF_ISA::loss
