// The cells: gates i, f, g, o of LSTM; r, z, n of GRU; one of a plain layer. `x` is the input's part of the
// pre-activations, `hidden` the recurrent one, each with its bias.
#pragma once
#include "../../common/recurrent.h"
#include "../core/math.h"

namespace pf::cuda::recurrent {

// From exp(-|x|), which cannot overflow.
__device__ __forceinline__ float sigmoid(float x) {
  const float e = exp(-abs(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// kSaved: values that the backward wants of a unit's gates. kSlots: gradients of a unit; those of the recurrent part
// are the last kGates of them. kApart: the gate whose recurrent part is not simply added to the input's.
struct Lstm {
  static constexpr int kGates = 4, kSaved = 4, kSlots = 4, kApart = -1;
  static constexpr bool kHasC = true;

  static __device__ void forward(Cell, const float (&x)[4], const float (&hidden)[4], float& h, float& c,
                                 float (&saved)[4]) {
    saved[0] = sigmoid(x[0] + hidden[0]);
    saved[1] = sigmoid(x[1] + hidden[1]);
    saved[2] = tanh(x[2] + hidden[2]);
    saved[3] = sigmoid(x[3] + hidden[3]);
    c = saved[1] * c + saved[0] * saved[2];
    h = saved[3] * tanh(c);
  }
  // dc: of c after the step, then of the c before; the result is what h before gets beside the products.
  static __device__ float backward(Cell, float dh, float& dc, const float (&saved)[4], float c, float before, float,
                                   float (&d)[4]) {
    const float i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh(c);
    dc += dh * o * (1.0f - tanh_c * tanh_c);
    d[0] = dc * g * i * (1.0f - i);
    d[1] = dc * before * f * (1.0f - f);
    d[2] = dc * i * (1.0f - g * g);
    d[3] = dh * tanh_c * o * (1.0f - o);
    dc *= f;
    return 0.0f;
  }
};

struct Gru {
  static constexpr int kGates = 3, kSaved = 4, kSlots = 4, kApart = 2;
  static constexpr bool kHasC = false;

  static __device__ void forward(Cell, const float (&x)[3], const float (&hidden)[3], float& h, float&,
                                 float (&saved)[4]) {
    saved[0] = sigmoid(x[0] + hidden[0]);
    saved[1] = sigmoid(x[1] + hidden[1]);
    saved[2] = tanh(x[2] + saved[0] * hidden[2]);
    saved[3] = hidden[2];
    h = saved[2] + saved[1] * (h - saved[2]);
  }
  static __device__ float backward(Cell, float dh, float&, const float (&saved)[4], float, float before, float,
                                   float (&d)[4]) {
    const float r = saved[0], z = saved[1], n = saved[2], dn = dh * (1.0f - z) * (1.0f - n * n);
    d[0] = dn;
    d[1] = dn * saved[3] * r * (1.0f - r);
    d[2] = dh * (before - n) * z * (1.0f - z);
    d[3] = dn * r;
    return dh * z;
  }
};

struct Plain {
  static constexpr int kGates = 1, kSaved = 0, kSlots = 1, kApart = -1;
  static constexpr bool kHasC = false;

  static __device__ void forward(Cell cell, const float (&x)[1], const float (&hidden)[1], float& h, float&,
                                 float (&)[4]) {
    const float z = x[0] + hidden[0];
    h = cell == Cell::rnn_tanh ? tanh(z) : z < 0.0f ? 0.0f : z;  // a NaN stays
  }
  static __device__ float backward(Cell cell, float dh, float&, const float (&)[4], float, float, float y,
                                   float (&d)[1]) {
    d[0] = cell == Cell::rnn_tanh ? dh * (1.0f - y * y) : y > 0.0f ? dh : 0.0f;
    return 0.0f;
  }
};

}  // namespace pf::cuda::recurrent
