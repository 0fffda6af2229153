// The end of a convolution, as its sums leave the registers: bias, residual, activation.
#pragma once
#include "../../common/conv.h"
#include "../pointwise/activations.h"

namespace PF_ISA::conv {

namespace {

struct NoActivation {
  template <class V>
  PF_MEMBER V forward(V x) const {
    return x;
  }
};

template <class S, class Act>
struct Finish {
  const S *bias, *residual;
  S *to, *preact;
  Act act;

  PF_MEMBER Acc<S> bias_of(int64_t channel) const { return bias ? get(bias + channel) : Acc<S>(0); }
  PF_MEMBER Vec<Acc<S>> bias_of(int64_t channel, int64_t count) const {
    return bias ? load_n(bias + channel, count) : Vec<Acc<S>>{};
  }
  // The first `count` lanes of z are results, `step` elements apart, from `at` on.
  PF_MEMBER void operator()(int64_t at, int64_t step, Vec<Acc<S>> z, int64_t count) const {
    if (step == 1) {
      if (residual) z += load_n(residual + at, count);
      if (preact) store_n(preact + at, z, count);
      return store_n(to + at, act.forward(z), count);
    }
    Acc<S> sums[kLanes<Acc<S>>] __attribute__((aligned(64)));
    store(sums, z);
    if (residual)
      for (int64_t i = 0; i < count; i++) sums[i] += get(residual + at + i * step);
    if (preact)
      for (int64_t i = 0; i < count; i++) put(preact + at + i * step, sums[i]);
    store(sums, act.forward(load(sums)));
    for (int64_t i = 0; i < count; i++) put(to + at + i * step, sums[i]);
  }
};

template <class S, class F>
PF_INLINE void for_finish(const Conv& p, F f) {
  auto with = [&](auto act) {
    f(Finish<S, decltype(act)>{(const S*)p.bias, (const S*)p.residual, (S*)p.y, (S*)p.preact, act});
  };
  if (p.activation.row < 0) return with(NoActivation{});
  pointwise::for_activation(p.activation, with);
}

}  // namespace

}  // namespace PF_ISA::conv
