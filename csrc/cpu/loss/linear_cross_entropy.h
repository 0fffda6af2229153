// Cross entropy of a block of scores at a time: of some rows, of some adjacent classes.
#pragma once
#include "cross_entropy.h"

namespace PF_ISA::loss {

namespace {

// Of the classes of the block alone, where a class weighs what it does.
template <class S, Spread kSpread>
PF_INLINE Weights<S, kSpread> weights_of_block(const LinearCrossEntropy& p) {
  auto w = weights_of<S, kSpread>(p.of);
  if (w.weight) w.weight += p.first;
  return w;
}

// Both counted from the larger top. Where all scores of one are -infinity, as a bias has it of classes that are none,
// the other counts alone.
PF_INLINE void add_sums(RowSums* to, const RowSums& more) {
  constexpr double kNone = -__builtin_inf();
  if (to->mass == 0 && more.mass == 0 && (to->top == kNone || more.top == kNone)) {
    if (more.top != kNone) to->top = more.top, to->sum = more.sum;
    return;
  }
  const double top = max_of(to->top, more.top), down = to->top - top, more_down = more.top - top;
  to->sum = to->sum * ::exp(down) + more.sum * ::exp(more_down);
  if (more.mass != 0) to->moment += down * to->mass + more.moment + more_down * more.mass;
  to->mass += more.mass;
  to->top = top;
}

template <class Body>
PF_INLINE void for_rows(const LinearCrossEntropy& p, int threads, Body body) {
  parallel_ranges(p.of.outer, max_of(1, kElementwiseGrain / max_of(1, p.classes)), threads,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t row = begin; row < end; row++) body(row);
                  });
}

template <class F>
PF_INLINE void for_smoothing(const CrossEntropy& p, F f) {
  if (p.smoothing == 0) return f(Constant<Spread::nothing>{});
  p.weight ? f(Constant<Spread::weighted_smoothing>{}) : f(Constant<Spread::smoothing>{});
}

}  // namespace

// What the mean divides by is known from the targets.
void linear_cross_entropy_begin(const LinearCrossEntropy& p, int) {
  double total = p.of.reduction == Reduction::mean ? 0 : 1;
  for_dtype(p.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for (int64_t row = 0; p.of.reduction == Reduction::mean && row < p.of.outer; row++) {
      const int64_t target = target_of(p.of, row);
      if (target >= 0) total += weight_of<S>(p.of, target);
    }
    *(Acc<S>*)p.total = (Acc<S>)total;
  });
  *p.sum = 0;
}

void linear_cross_entropy_sums(const LinearCrossEntropy& p, int num_threads) {
  for_dtype(p.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_smoothing(p.of, [&](auto chosen) {
      const auto w = weights_of_block<S, decltype(chosen)::value>(p);
      for_rows(p, num_threads, [&](int64_t row) {
        const S* x = (const S*)p.of.x + row * p.classes;
        const Sums<Acc<S>> of = sums_of_row(x, p.classes, w);
        RowSums& sums = p.sums[row];
        const RowSums more = {(double)of.top, of.sum, of.mass, of.moment, 0};
        if (p.first == 0)
          sums = more;
        else
          add_sums(&sums, more);
        const int64_t target = target_of(p.of, row) - p.first;
        if ((uint64_t)target < (uint64_t)p.classes) sums.score = (double)get(x + target);
      });
    });
  });
}

// In order, on one thread: a logarithm a row.
void linear_cross_entropy_losses(const LinearCrossEntropy& p, int) {
  for_dtype(p.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for (int64_t row = 0; row < p.of.outer; row++) {
      const RowSums& of = p.sums[row];
      const double log_sum = ::log(of.sum);
      ((Acc<S>*)p.tops)[row] = (Acc<S>)of.top, ((Acc<S>*)p.logs)[row] = (Acc<S>)log_sum;
      const int64_t target = target_of(p.of, row);
      const double loss = part_of<S>(p.of, target, of.score, of.top, log_sum, of.mass, of.moment).loss;
      if (p.of.reduction == Reduction::none) put_number(p.loss, row, loss, p.of.loss_dtype);
      *p.sum += loss;
    }
    if (p.of.reduction != Reduction::none) put_number(p.loss, 0, *p.sum / (double)*(Acc<S>*)p.total, p.of.loss_dtype);
  });
}

void linear_cross_entropy_gradients(const LinearCrossEntropy& p, int num_threads) {
  for_dtype(p.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> T;
    for_smoothing(p.of, [&](auto chosen) {
      constexpr Spread kSpread = decltype(chosen)::value;
      const auto w = weights_of_block<S, kSpread>(p);
      const double mass = mass_of_row<S, kSpread>(p.of.n, weights_of<S, kSpread>(p.of));
      const bool is_none = p.of.reduction == Reduction::none;
      const double scale = (p.dloss && !is_none ? number_of(p.dloss, 0, p.of.loss_dtype) : 1) / (double)*(T*)p.total;
      for_rows(p, num_threads, [&](int64_t row) {
        S* x = (S*)p.of.x + row * p.classes;
        const int64_t target = target_of(p.of, row);
        if (target < 0) return (void)memset(x, 0, (size_t)p.classes * sizeof(S));
        const double g = p.dloss && is_none ? number_of(p.dloss, row, p.of.loss_dtype) : scale;
        const double at_target = (1 - p.of.smoothing) * weight_of<S>(p.of, target);
        gradient_of_row(x, x, p.classes, w, ((const T*)p.tops)[row], ((const T*)p.logs)[row], (T)g,
                        (T)(mass + at_target), target - p.first, (T)at_target, false);
      });
    });
  });
}

void loss_scale(const LossScale& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Vec<Acc<S>> V;
    S* x = (S*)p.x;
    const V by = splat<V>((Acc<S>)p.by);
    parallel_ranges(p.count, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
      for_columns_down<Acc<S>>(begin, end,
                               [&](int64_t i, auto count) { store_part(x + i, by * load_part(x + i, count), count); });
    });
  });
}

}  // namespace PF_ISA::loss
