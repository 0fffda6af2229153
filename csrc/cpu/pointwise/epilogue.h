// What is fused to the end of an operation (Epilogue in common/pointwise.h), on a tile of its result: for any kernel
// that has some elements of it in the order of memory.
#pragma once
#include "channels.h"
#include "random.h"

namespace PF_ISA::pointwise {

namespace {

// For the elements of one tile after the other: what is added to each, and what each is multiplied by at last. Where
// there is no bias -0 is added, which changes nothing, not even a zero's sign.
template <class A>
struct Extras {
  const Epilogue& p;
  const A* bias;
  Tile<A> spread, factors;

  explicit Extras(const Epilogue& p) : p(p), bias(spread.at) {
    if (!p.bias) spread.fill((A)-0.0);
    if (!p.seed) factors.fill(1);
  }
  void move(int64_t first, int64_t count) {
    if (p.bias) bias = by_element((const A*)p.bias, p.of, first, count, spread);
    if (p.seed) keep(p.seed, p.drop_below, p.keep_scale, first, count, factors.at);
  }
};

// y = clamp(gain activation(x + bias)) factor. NaN stays NaN.
template <class A>
__attribute__((noinline)) void epilogue_fwd(const Extras<A>& extras, int64_t count, const A* x, A* y) {
  typedef Vec<A> V;
  const Epilogue& p = extras.p;
  const V gain = constant<V>(p.gain), most = constant<V>(p.clamp >= 0 ? p.clamp : HUGE_VAL);
  for_optional_activation(p.activation, [&](auto act) {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      V u = act.forward(load(x + i) + load(extras.bias + i)) * gain;
      u = select(u > most, most, u);
      u = select(u < -most, -most, u);
      store(y + i, u * load(extras.factors.at + i));
    }
  });
}

// dx, with dy of the epilogue's result. At the bounds of a clamp the gradient passes, as torch.clamp's.
template <bool kClamps, class A>
__attribute__((noinline)) void epilogue_bwd(const Extras<A>& extras, int64_t count, const A* dy, const A* x, A* dx) {
  typedef Vec<A> V;
  const Epilogue& p = extras.p;
  const V gain = constant<V>(p.gain), most = constant<V>(p.clamp);
  for_optional_activation(p.activation, [&](auto act) {
    constexpr bool from_output = decltype(act)::kFromOutput;
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const V z = load(x + i) + load(extras.bias + i);
      const V y = from_output || kClamps ? act.forward(z) : z;
      V d = act.backward(load(dy + i) * load(extras.factors.at + i) * gain, from_output ? y : z);
      if (kClamps) d = select(abs(y * gain) <= most, d, V{});
      store(dx + i, d);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::pointwise
