// What a step computes of one vector of a parameter, its gradient and its states; in the order of torch's
// single-tensor implementations, which round after each operation where these may not.
#pragma once
#include "../../common/optim.h"
#include "../core/columns.h"

namespace PF_ISA::optim {

namespace {

// What `UpdateOptions` says, rounded once to the type of the arithmetic.
template <class T>
struct Numbers {
  T gradient_factor, sign, weight_decay, shrink, step_size, momentum, fresh, mean_weight, square_decay, square_weight,
      root_scale, eps, ema_weight;
  bool is_nesterov;
  Gradients gradients;

  explicit Numbers(const UpdateOptions& o)
      : gradient_factor((T)o.gradient_factor),
        sign((T)o.sign),
        weight_decay((T)o.weight_decay),
        shrink((T)o.shrink),
        step_size((T)o.step_size),
        momentum((T)o.momentum),
        fresh((T)o.fresh),
        mean_weight((T)(1 - o.mean_decay)),
        square_decay((T)o.square_decay),
        square_weight((T)(1 - o.square_decay)),
        root_scale((T)o.root_scale),
        eps((T)o.eps),
        ema_weight((T)(1 - o.ema_decay)),
        is_nesterov(o.is_nesterov),
        gradients(o.gradients) {}
};

// From a to b, by torch.lerp's two forms: either end is met exactly.
template <class V>
PF_INLINE V lerp(V a, V b, Element<V> weight) {
  return weight < (Element<V>)0.5 ? a + (b - a) * weight : b - (b - a) * (1 - weight);
}

// Sutskever et al. 2013 as torch.optim.SGD has it.
template <bool kHasMomentum>
struct Sgd {
  static constexpr bool kHas[kStates] = {kHasMomentum, false, false};
  template <class T, class V>
  PF_INLINE V step(const Numbers<T>& n, V p, V g, V (&states)[kStates]) {
    if constexpr (kHasMomentum) {
      const V buffer = states[0] * n.momentum + g * n.fresh;
      states[0] = buffer;
      g = n.is_nesterov ? g + buffer * n.momentum : buffer;
    }
    return p - g * n.step_size;
  }
};

// Kingma and Ba 2015, Algorithm 1; Reddi et al. 2018 with the maximum.
template <bool kHasMaximum>
struct Adam {
  static constexpr bool kHas[kStates] = {true, true, kHasMaximum};
  template <class T, class V>
  PF_INLINE V step(const Numbers<T>& n, V p, V g, V (&states)[kStates]) {
    states[0] = lerp(states[0], g, n.mean_weight);
    states[1] = states[1] * n.square_decay + g * g * n.square_weight;
    if constexpr (kHasMaximum) states[2] = maximum(states[2], states[1]);
    const V root = square_root(states[kHasMaximum ? 2 : 1]) / n.root_scale + n.eps;
    return p - states[0] * n.step_size / root;
  }
};

// Tieleman and Hinton 2012; centered as Graves 2013.
template <bool kIsCentered, bool kHasMomentum>
struct RmsProp {
  static constexpr bool kHas[kStates] = {true, kIsCentered, kHasMomentum};
  template <class T, class V>
  PF_INLINE V step(const Numbers<T>& n, V p, V g, V (&states)[kStates]) {
    states[0] = states[0] * n.square_decay + g * g * n.square_weight;
    V square = states[0];
    if constexpr (kIsCentered) {
      states[1] = lerp(states[1], g, n.square_weight);
      square -= states[1] * states[1];
    }
    const V root = square_root(square) + n.eps;
    if constexpr (!kHasMomentum) return p - g * n.step_size / root;
    states[2] = states[2] * n.momentum + g / root;
    return p - states[2] * n.step_size;
  }
};

}  // namespace

}  // namespace PF_ISA::optim
