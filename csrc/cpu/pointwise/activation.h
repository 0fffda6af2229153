// Element-wise activations, forward, backward and the backward of that, over dense memory.
#pragma once
#include "../../common/pointwise.h"
#include "../core/parallel.h"
#include "activations.h"

namespace PF_ISA::pointwise {

namespace {

// From the end to the beginning: an output often lies one cache line further into its page than the input (allocated
// one after the other), and a load whose low 12 bits are those of a store just before it waits for that store.
// The activation comes by value: what its parameters make of it is set before the loop.

template <class S, class Act>
void activation_fwd_range(const Act act, const S* x, S* y, int64_t n) {
  constexpr int lanes = kLanes<Acc<S>>;
  int64_t i = n / lanes * lanes;
  if (i < n) store_n(y + i, act.forward(load_n(x + i, n - i)), n - i);
  while ((i -= lanes) >= 0) store(y + i, act.forward(load(x + i)));
}

template <class S, class Act>
void activation_bwd_range(const Act act, const S* dy, const S* saved, S* dx, int64_t n) {
  constexpr int lanes = kLanes<Acc<S>>;
  int64_t i = n / lanes * lanes;
  if (i < n) store_n(dx + i, act.backward(load_n(dy + i, n - i), load_n(saved + i, n - i)), n - i);
  while ((i -= lanes) >= 0) store(dx + i, act.backward(load(dy + i), load(saved + i)));
}

template <class S, class Act>
void activation_bwd_bwd_range(const Act act, const S* ddx, const S* dy, const S* saved, S* ddy, S* dsaved, int64_t n) {
  constexpr int lanes = kLanes<Acc<S>>;
  int64_t i = n / lanes * lanes;
  if (i < n) {
    const auto d = load_n(ddx + i, n - i), s = load_n(saved + i, n - i);
    const auto of_saved = act.double_backward(d, load_n(dy + i, n - i), s);
    if (ddy) store_n(ddy + i, act.backward(d, s), n - i);
    store_n(dsaved + i, of_saved, n - i);
  }
  while ((i -= lanes) >= 0) {
    const auto d = load(ddx + i), s = load(saved + i);
    const auto of_saved = act.double_backward(d, load(dy + i), s);
    if (ddy) store(ddy + i, act.backward(d, s));
    store(dsaved + i, of_saved);
  }
}

}  // namespace

void activation_fwd(const ActivationFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_activation(p.activation, [&](auto act) {
      parallel_ranges(p.n, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
        activation_fwd_range<S>(act, (const S*)p.x + begin, (S*)p.y + begin, end - begin);
      });
    });
  });
}

void activation_bwd(const ActivationBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_activation(p.activation, [&](auto act) {
      parallel_ranges(p.n, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
        activation_bwd_range<S>(act, (const S*)p.dy + begin, (const S*)p.saved + begin, (S*)p.dx + begin, end - begin);
      });
    });
  });
}

void activation_bwd_bwd(const ActivationBwdBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_activation(p.activation, [&](auto act) {
      if constexpr (decltype(act)::kIsCurved) {
        parallel_ranges(p.n, kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
          activation_bwd_bwd_range<S>(act, (const S*)p.ddx + begin, (const S*)p.dy + begin, (const S*)p.saved + begin,
                                      p.ddy ? (S*)p.ddy + begin : nullptr, (S*)p.dsaved + begin, end - begin);
        });
      }
    });
  });
}

}  // namespace PF_ISA::pointwise
