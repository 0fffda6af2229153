// What is fused to the end of an operation (Epilogue in common/pointwise.h), as stages on a tile of its accumulators:
// for any kernel that has some elements of its result in the order of memory.
#pragma once
#include "channels.h"
#include "random.h"

namespace PF_ISA::pointwise {

namespace {

template <class A>
PF_INLINE void add_bias(const Epilogue& p, int64_t first, int64_t count, A* z) {
  if (!p.bias) return;
  Tile<A> spread;
  const A* bias = by_element((const A*)p.bias, p.of, first, count, spread);
  for (int64_t i = 0; i < count; i += kLanes<A>) store(z + i, load(z + i) + load(bias + i));
}

PF_INLINE bool scales(const Epilogue& p) { return p.gain != 1 || p.clamp >= 0; }

// Elements [first, first + count) of the operation's result become those of the epilogue's. NaN stays NaN.
template <class A>
__attribute__((noinline)) void epilogue_fwd(const Epilogue& p, int64_t first, int64_t count, A* z) {
  typedef Vec<A> V;
  add_bias(p, first, count, z);
  if (p.activation.row >= 0) activate(p.activation, count, z);
  if (scales(p)) {
    const V gain = constant<V>(p.gain), most = constant<V>(p.clamp >= 0 ? p.clamp : HUGE_VAL);
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      V u = load(z + i) * gain;
      u = select(u > most, most, u);
      store(z + i, select(u < -most, -most, u));
    }
  }
  if (p.seed) drop(p.seed, p.drop_below, p.keep_scale, first, count, z);
}

// d, the gradient of the epilogue's result, becomes that of its argument x, of which z holds the elements where there
// is an activation or a clamp. At the bounds of a clamp the gradient passes, as torch.clamp's.
template <class A>
__attribute__((noinline)) void epilogue_bwd(const Epilogue& p, int64_t first, int64_t count, A* z, A* d) {
  typedef Vec<A> V;
  if (p.seed) drop(p.seed, p.drop_below, p.keep_scale, first, count, d);
  const V gain = constant<V>(p.gain);
  if (p.gain != 1)
    for (int64_t i = 0; i < count; i += kLanes<A>) store(d + i, load(d + i) * gain);
  if (p.activation.row < 0 && p.clamp < 0) return;
  add_bias(p, first, count, z);
  if (p.clamp < 0) return activate_bwd<A, false>(p.activation, count, z, d);
  if (p.activation.row >= 0) activate_bwd<A, true>(p.activation, count, z, d);
  const V most = constant<V>(p.clamp);
  for (int64_t i = 0; i < count; i += kLanes<A>)
    store(d + i, select(abs(load(z + i) * gain) <= most, load(d + i), V{}));
}

}  // namespace

}  // namespace PF_ISA::pointwise
