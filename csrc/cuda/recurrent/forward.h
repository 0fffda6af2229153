// The forward walk: h of every step from x's part of the pre-activations, one launch for all steps.
#pragma once
#include "cells.h"
#include "grid.h"

namespace pf::cuda::recurrent {

template <class A, class C, int kTileCount>
struct Forward : Kernel<kThreads> {
  typedef A Arithmetic;
  typedef Stored<A> T;
  static constexpr int kTiles = kTileCount, kHeld = kHeldPieces<A, kTiles>, kExchanged = 1;
  static constexpr int kUnits = kTiles * kTile / C::kGates / 8 * 8, kGates = C::kGates;
  static_assert(kUnits * kColumns <= kThreads, "a thread for each unit and sequence of a tile");

  __device__ void operator()(RnnWalkFwd p, Grid grid) const {
    PF_DYNAMIC_SHARED(float, sums);  // then weights, then states
    Words* const shared = as_vector<Words>(sums + kSumsSize<kTiles>);
    const RnnShape& shape = p.walk.shape;
    const RnnRows& rows = p.walk.rows;
    const int64_t hidden = shape.hidden;
    const Own<kUnits> own(grid, kExchanged);
    const int64_t d = own.direction;
    const RnnWeights& of = p.walk.weights[d];

    const int all = (int)(grid.pitch / kPieceBytes), parts = all < kWarps ? all : kWarps;
    const int beyond = (all + kWarps - 1) / kWarps - kHeld;
    Weights<A, kTiles, kHeld> weights;
    weights.take(all, shared, [&](int row, int piece, int element) {
      const int64_t gate = row / kUnits, unit = own.first_unit + row % kUnits;
      const int64_t k = (int64_t)piece * kPieceElements<A> + element;
      if (gate >= kGates || unit >= hidden || k >= hidden) return T{};
      return ((const T*)of.w_hh)[(gate * hidden + unit) * hidden + k];
    });

    // A thread has one unit, and of every tile one sequence, whose states it alone reads and writes.
    const int own_unit = (int)threadIdx.x % kUnits, column = (int)threadIdx.x / kUnits;
    const int64_t unit = own.first_unit + own_unit;
    const bool has_unit = column < kColumns && unit < hidden;
    float* const h_own = (float*)(shared + (beyond > 0 ? beyond : 0) * kWarps * kTiles * 2 * kWarp) + own_unit;
    float* const c_own = h_own + kMostRows * kUnits;
    float bias[kGates] = {}, own_bias = 0.0f;  // and that of a recurrent part which is not simply added
    if (has_unit && of.b_ih) PF_UNROLL_ALL
    for (int g = 0; g < kGates; g++) {
      const float second = to_float(((const T*)of.b_hh)[g * hidden + unit]);
      bias[g] = to_float(((const T*)of.b_ih)[g * hidden + unit]);
      if (g == C::kApart)
        own_bias = second;
      else
        bias[g] += second;
    }
    for (int row = column; has_unit && row < own.rows; row += kColumns) {
      const int64_t state = (d * shape.batch + row_of(rows, shape, own.first_row + row)) * hidden + unit;
      const T h = ((const T*)p.h_0)[state];
      h_own[row * kUnits] = to_float(h);
      if (C::kHasC) c_own[row * kUnits] = to_float(((const T*)p.c_0)[state]);
      ((T*)own.rows_at(0, row))[unit] = h;
    }
    tell(own.flag);

    for (int64_t step = 0; step < shape.length; step++) {
      const int64_t t = time_of(shape, d, step), active = active_at(rows, shape, t);
      for (int first = 0; first < own.rows || first == 0; first += kColumns) {
        const int row = first + column;
        const int64_t b = own.first_row + row;
        const bool is_there = has_unit && row < own.rows;
        Place place = {};
        float x[kGates] = {};
        if (is_there) {
          place = place_at(rows, shape, p.walk.positions, t, b, row_of(rows, shape, b));
          if (place.is_active) {
            const float* const from = p.x_gates + (d * p.walk.positions + place.position) * p.x_slots * hidden + unit;
            PF_UNROLL_ALL
            for (int g = 0; g < kGates; g++) x[g] = from[g * hidden];
          }
        }
        if (first == 0) wait_for(own.flag, (uint32_t)(step + 1) * (uint32_t)grid.blocks);
        if (own.first_row + first < active && weights.pieces) {
          float part[kTiles][4];
          weights.multiply(own.rows_at(step, first), own.row_bytes, part);
          store_sums<kTiles>(sums, part);
        }
        __syncthreads();
        if (is_there) {
          float h = h_own[row * kUnits], c = C::kHasC ? c_own[row * kUnits] : 0.0f;
          if (place.is_active) {
            float products[kGates], saved[4];
            PF_UNROLL_ALL
            for (int g = 0; g < kGates; g++) {
              products[g] = sum_of<kTiles>(sums, parts, g * kUnits + own_unit, column);
              if (g == C::kApart) products[g] += own_bias;
              x[g] += bias[g];
            }
            C::forward(shape.cell, x, products, h, c, saved);
            h = to_float(from_float<T>(h));
            h_own[row * kUnits] = h;
            if (C::kHasC) c_own[row * kUnits] = c;
            if (C::kSaved && p.gates) PF_UNROLL_ALL
            for (int g = 0; g < C::kSaved; g++)
              p.gates[((d * p.walk.positions + place.saved) * 4 + g) * hidden + unit] = saved[g];
          }
          ((T*)own.rows_at(step + 1, row))[unit] = from_float<T>(h);
          if (place.is_active || !rows.is_packed) {  // what lies past the end of a padded sequence is zero
            ((T*)p.y)[(place.position * shape.directions + d) * hidden + unit] =
                from_float<T>(place.is_active ? h : 0.0f);
            if (C::kHasC && p.cells)
              p.cells[(d * p.walk.positions + place.saved) * hidden + unit] = place.is_active ? c : 0.0f;
          }
        }
        if (first + kColumns < own.rows) __syncthreads();  // sums are written again
      }
      tell(own.flag);
    }
    for (int row = column; has_unit && row < own.rows; row += kColumns) {
      const int64_t state = (d * shape.batch + row_of(rows, shape, own.first_row + row)) * hidden + unit;
      ((T*)p.h_n)[state] = from_float<T>(h_own[row * kUnits]);
      if (C::kHasC) ((T*)p.c_n)[state] = from_float<T>(c_own[row * kUnits]);
    }
  }
};

}  // namespace pf::cuda::recurrent
