// What a loss averages: f(x), g f'(x) and g f''(x), in the order of LossTerm. Where a function has a corner, and for
// NaN, the derivatives are those of torch's relu.
#pragma once
#include "../../common/loss.h"
#include "../simd/math.h"

namespace PF_ISA::loss {

namespace {

struct Softplus {
  template <class V>
  PF_INLINE V value(V x) {
    return select(x > V{}, x, V{}) + log1p(exp(-abs(x)));  // NaN through the second
  }
  template <class V>
  PF_INLINE V first(V x, V g) {
    return g * sigmoid(x);
  }
  template <class V>
  PF_INLINE V second(V x, V g) {
    return g * (sigmoid(x) * sigmoid(-x));
  }
};

struct SoftplusNegative {
  template <class V>
  PF_INLINE V value(V x) {
    return Softplus::value(-x);
  }
  template <class V>
  PF_INLINE V first(V x, V g) {
    return -g * sigmoid(-x);
  }
  template <class V>
  PF_INLINE V second(V x, V g) {
    return Softplus::second(x, g);
  }
};

template <int kSign>  // of x
struct Hinge {
  template <class V>
  PF_INLINE V value(V x) {
    const V u = kSign < 0 ? constant<V>(1) - x : constant<V>(1) + x;
    return select(u <= V{}, V{}, u);
  }
  template <class V>
  PF_INLINE V first(V x, V g) {
    const V u = kSign < 0 ? constant<V>(1) - x : constant<V>(1) + x;
    return select(u <= V{}, V{}, kSign < 0 ? -g : g);
  }
  template <class V>
  PF_INLINE V second(V, V) {
    return V{};
  }
};

struct Value {
  template <class V>
  PF_INLINE V value(V x) {
    return x;
  }
  template <class V>
  PF_INLINE V first(V, V g) {
    return g;
  }
  template <class V>
  PF_INLINE V second(V, V) {
    return V{};
  }
};

template <int kTarget>
struct HalfSquare {
  template <class V>
  PF_INLINE V value(V x) {
    const V d = x - constant<V>(kTarget);
    return constant<V>(0.5) * d * d;
  }
  template <class V>
  PF_INLINE V first(V x, V g) {
    return g * (x - constant<V>(kTarget));
  }
  template <class V>
  PF_INLINE V second(V, V g) {
    return g;
  }
};

template <class Term>
struct Minus {
  template <class V>
  PF_INLINE V value(V x) {
    return -Term::value(x);
  }
  template <class V>
  PF_INLINE V first(V x, V g) {
    return Term::first(x, -g);
  }
  template <class V>
  PF_INLINE V second(V x, V g) {
    return Term::second(x, -g);
  }
};

template <class F>
PF_INLINE void for_term(LossTerm term, F f) {
  switch (term) {
    case LossTerm::softplus: return f(Softplus{});
    case LossTerm::softplus_negative: return f(SoftplusNegative{});
    case LossTerm::hinge_below: return f(Hinge<-1>{});
    case LossTerm::hinge_above: return f(Hinge<1>{});
    case LossTerm::value: return f(Value{});
    case LossTerm::half_square_to_one: return f(HalfSquare<1>{});
    case LossTerm::half_square: return f(HalfSquare<0>{});
    case LossTerm::minus_softplus: return f(Minus<Softplus>{});
    case LossTerm::minus_value: return f(Minus<Value>{});
  }
}

}  // namespace

}  // namespace PF_ISA::loss
