// What surrounds the walks and is done element by element.
#pragma once
#include "cells.h"
#include "places.h"

namespace pf::cuda::recurrent {

constexpr int kPassThreads = 256;

__device__ inline int64_t own_element() { return (int64_t)blockIdx.x * kPassThreads + threadIdx.x; }

template <class T, class C>
struct Activate : Kernel<kPassThreads> {
  __device__ void operator()(RnnActivate p) const {
    const int64_t hidden = p.shape.hidden, i = own_element();
    if (i >= p.rows * hidden) return;
    const int64_t unit = i % hidden;
    float* const at = p.gates + i / hidden * 4 * hidden + unit;
    float x[C::kGates], products[C::kGates] = {}, h = 0.0f, c = 0.0f, saved[4];
    PF_UNROLL_ALL
    for (int g = 0; g < C::kGates; g++) x[g] = at[g * hidden];
    if (C::kGates == 3) products[2] = at[3 * hidden];
    if (p.weights.b_ih) PF_UNROLL_ALL
    for (int g = 0; g < C::kGates; g++) {
      x[g] += to_float(((const T*)p.weights.b_ih)[g * hidden + unit]);
      products[g] += to_float(((const T*)p.weights.b_hh)[g * hidden + unit]);
    }
    C::forward(p.shape.cell, x, products, h, c, saved);
    PF_UNROLL_ALL
    for (int g = 0; g < C::kSaved; g++) at[g * hidden] = saved[g];
  }
};

// A thread for each (step, sequence, direction, column).
template <class T>
struct Gather : Kernel<kPassThreads> {
  __device__ void operator()(RnnGather p) const {
    const RnnShape& shape = p.shape;
    const int64_t i = own_element();
    if (i >= shape.length * shape.batch * shape.directions * shape.hidden) return;
    const int64_t column = i % shape.hidden, d = i / shape.hidden % shape.directions;
    const int64_t b = i / shape.hidden / shape.directions % shape.batch;
    const int64_t t = i / shape.hidden / shape.directions / shape.batch, row = row_of(p.rows, shape, b);
    const Place place = place_at(p.rows, shape, p.positions, t, b, row);
    if (!place.is_active && p.rows.is_packed) return;
    T value = from_float<T>(0.0f);
    if (place.is_active) {
      Place origin = place;
      if (p.initial) origin = place_at(p.rows, shape, p.positions, t + (d == 0 ? -1 : 1), b, row);
      value = origin.is_active ? ((const T*)p.from)[origin.position * p.from_stride + d * shape.hidden + column]
                               : ((const T*)p.initial)[(d * shape.batch + row) * shape.hidden + column];
    }
    ((T*)p.to)[(d * p.positions + place.position) * shape.hidden + column] = value;
  }
};

}  // namespace pf::cuda::recurrent
