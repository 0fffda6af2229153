// What the cells are: how their sums become gates and state, and the gradients of both. Everything else in this folder
// is told apart by the number of gates only: 4 LSTM, 3 GRU, 1 RNN.
#pragma once
#include "../../common/recurrent.h"
#include "../simd/math.h"
#include "tile.h"

namespace PF_ISA::recurrent {

namespace {

template <int kCount>
struct Gates {
  static constexpr int count = kCount;
};

template <class F>
PF_INLINE void for_gates(Cell cell, F f) {
  switch (gate_count(cell)) {
    case 4: return f(Gates<4>{});
    case 3: return f(Gates<3>{});
    default: return f(Gates<1>{});
  }
}

// Gradients for each unit: n of GRU has one that h's product reads and one that x's does.
PF_INLINE constexpr int gradient_count(int gates) { return gates == 3 ? 4 : gates; }

// ---- sigmoid and tanh of gates: one exponential and one quotient each, where those of math.h compute two branches.
// Both are e^x - 1 over or under e^x + 1, so that small values of tanh keep their digits.

// e^x - 1 for |x| <= limit, which is below 88; farther out the value there.
PF_INLINE vf exp_minus_one(vf x, double limit) {
  x = min_fast(constant<vf>(limit), max_fast(constant<vf>(-limit), x));  // keeps NaN: the second argument wins
  vf n = round_even(x * 1.44269504088896f);
  vf r = fma(n, constant<vf>(-0.693359375), x);
  r = fma(n, constant<vf>(2.12194440054690583e-4), r);
  vf q = horner(r, 4.9999998584e-01, 1.6666474070e-01, 4.1667069629e-02, 8.3771200828e-03, 1.3907082289e-03);
  vf scale = scale_pow2(constant<vf>(1), n);  // r + r^2 q is e^r - 1
  return fma(fma(r * r, q, r), scale, scale - 1.0f);
}

PF_INLINE vf gate_sigmoid(vf x) { return quotient(constant<vf>(1), exp_minus_one(-x, 87) + 2.0f); }
PF_INLINE vd gate_sigmoid(vd x) { return sigmoid(x); }

PF_INLINE vf gate_tanh(vf x) {
  vf e = exp_minus_one(x + x, 40);  // 1 from 9.1 on
  return quotient(e, e + 2.0f);
}
PF_INLINE vd gate_tanh(vd x) { return tanh(x); }

// Sums to gates: i, f, g, o, or r, z, n and what h adds to n.
template <int kGates, class V>
PF_INLINE void activate_gates(V (&v)[kSlots]) {
  v[0] = gate_sigmoid(v[0]);
  v[1] = gate_sigmoid(v[1]);
  v[2] = gate_tanh(kGates == 4 ? v[2] : fma(v[0], v[3], v[2]));
  if (kGates == 4) v[3] = gate_sigmoid(v[3]);
}

// ---- LSTM: c = f c + i g, h = o tanh(c) ----
template <class V>
PF_INLINE V lstm_step(const V (&v)[kSlots], V& c) {
  c = fma(v[0], v[2], v[1] * c);
  return v[3] * gate_tanh(c);
}
// d: of the sums of i, f, g, o. dc: of c without what comes through h, then of c before the step.
template <class V>
PF_INLINE void lstm_gradients(const V (&v)[kSlots], V tanh_c, V c_before, V dh, V& dc, V (&d)[4]) {
  const V one = constant<V>(1), i = v[0], f = v[1], g = v[2], o = v[3];
  dc = fma(dh * o, one - tanh_c * tanh_c, dc);
  d[0] = dc * g * i * (one - i);
  d[1] = dc * c_before * f * (one - f);
  d[2] = dc * i * (one - g * g);
  d[3] = dh * tanh_c * o * (one - o);
  dc = dc * f;
}

// ---- GRU: h = n + z (h - n) ----
template <class V>
PF_INLINE V gru_step(const V (&v)[kSlots], V h) {
  return fma(v[1], h - v[2], v[2]);
}
// d: of the sums of what h adds to n, of r, of z, of n. Returns what h before the step gets at once.
template <class V>
PF_INLINE V gru_gradients(const V (&v)[kSlots], V h_before, V dh, V (&d)[4]) {
  const V one = constant<V>(1), r = v[0], z = v[1], n = v[2];
  d[3] = dh * (one - z) * (one - n * n);
  d[2] = dh * (h_before - n) * z * (one - z);
  d[1] = d[3] * v[3] * r * (one - r);
  d[0] = d[3] * r;
  return dh * z;
}

// ---- RNN: h = tanh of the sum, or relu ----
template <class V>
PF_INLINE V rnn_step(Cell cell, V sum) {
  return cell == Cell::rnn_relu ? maximum(sum, V{}) : gate_tanh(sum);
}
template <class V>
PF_INLINE V rnn_gradient(Cell cell, V y, V dh) {
  return cell == Cell::rnn_relu ? select(y > V{}, dh, V{}) : dh * (constant<V>(1) - y * y);
}

}  // namespace

}  // namespace PF_ISA::recurrent
