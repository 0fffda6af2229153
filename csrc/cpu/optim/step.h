// One pass over the parameters of a group, their gradients, states and averaged copies: each is read once and written
// once. Threads share the elements of all tensors in a row, so many small ones are as good as one.
#pragma once
#include "../core/parallel.h"
#include "rules.h"

namespace PF_ISA::optim {

namespace {

// body(tensor, begin, end) for the parts of each tensor that lie in [begin, end) of all elements in a row.
template <class Body>
PF_INLINE void for_tensors(const TensorList& of, int64_t begin, int64_t end, Body body) {
  int64_t low = 0, high = of.count;  // the last tensor that begins at or before `begin`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (of.before[middle] <= begin ? low : high) = middle;
  }
  for (int64_t i = low; i < of.count && of.before[i] < end; i++) {
    const int64_t first = max_of(begin, of.before[i]) - of.before[i],
                  last = min_of(end, of.before[i + 1]) - of.before[i];
    if (first < last) body(i, first, last);
  }
}

// One tensor's columns.
template <class S>
struct Rows {
  S *p, *g, *states[kStates], *ema;

  Rows(const OptimStep& step, int64_t i)
      : p((S*)step.params[i]), g((S*)step.grads[i]), ema(step.emas ? (S*)step.emas[i] : nullptr) {
    for (int j = 0; j < kStates; j++) states[j] = step.states[j] ? (S*)step.states[j][i] : nullptr;
  }
};

template <class Rule, class S, class Count>
PF_INLINE void step_vector(const Numbers<Acc<S>>& n, const Rows<S>& rows, int64_t i, Count count) {
  typedef Vec<Acc<S>> V;
  V p = load_part(rows.p + i, count), g = load_part(rows.g + i, count) * n.gradient_factor, states[kStates];
  PF_UNROLL
  for (int j = 0; j < kStates; j++)
    if (Rule::kHas[j]) states[j] = load_part(rows.states[j] + i, count);
  if (n.gradients != Gradients::kept) store_part(rows.g + i, n.gradients == Gradients::written ? g : V{}, count);
  g *= n.sign;
  if (n.weight_decay != 0) g += p * n.weight_decay;  // 0 times an infinite parameter would be NaN
  p = Rule::step(n, p * n.shrink, g, states);
  store_part(rows.p + i, p, count);
  PF_UNROLL
  for (int j = 0; j < kStates; j++)
    if (Rule::kHas[j]) store_part(rows.states[j] + i, states[j], count);
  if (rows.ema) store_part(rows.ema + i, lerp(load_part(rows.ema + i, count), p, n.ema_weight), count);
}

template <class Rule, class S>
void step_by(const OptimStep& step, int num_threads) {
  const Numbers<Acc<S>> n(step.options);
  parallel_ranges(step.of.before[step.of.count], kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
    for_tensors(step.of, begin, end, [&](int64_t i, int64_t first, int64_t last) {
      const Rows<S> rows(step, i);
      for_columns<Acc<S>, 1>(first, last, [&](int64_t j, auto count, int) { step_vector<Rule>(n, rows, j, count); });
    });
  });
}

template <class S>
void step_of(const OptimStep& step, int num_threads) {
  const bool has_second = step.states[1], has_third = step.states[2];
  switch (step.options.rule) {
    case UpdateRule::sgd: return (step.states[0] ? step_by<Sgd<true>, S> : step_by<Sgd<false>, S>)(step, num_threads);
    case UpdateRule::adam: return (has_third ? step_by<Adam<true>, S> : step_by<Adam<false>, S>)(step, num_threads);
    case UpdateRule::rmsprop:
      if (has_second)
        return (has_third ? step_by<RmsProp<true, true>, S> : step_by<RmsProp<true, false>, S>)(step, num_threads);
      return (has_third ? step_by<RmsProp<false, true>, S> : step_by<RmsProp<false, false>, S>)(step, num_threads);
  }
}

}  // namespace

void optim_step(const OptimStep& step, int num_threads) {
  for_dtype(step.of.dtype, [&](auto storage) { step_of<decltype(storage)>(step, num_threads); });
}

}  // namespace PF_ISA::optim
