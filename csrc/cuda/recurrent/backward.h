// The backward walk: gradients of the pre-activations of every step. A block computes dh of its own units, the product
// of its columns of W_hh with the gates' gradients that all blocks published in the step before.
#pragma once
#include "cells.h"
#include "grid.h"

namespace pf::cuda::recurrent {

template <class A, class C>
struct Backward : Kernel<kThreads> {
  typedef A Arithmetic;
  typedef Stored<A> T;
  static constexpr int kTiles = 1, kHeld = kHeldPieces<A, kTiles>, kExchanged = C::kGates, kUnits = kTile;

  // What a step needs of a unit beside the product: on its way before the others are waited for.
  struct Read {
    float dy, gates[4], c, c_or_h_before, y, dcell;
  };
  static __device__ void read(Read& r, const RnnWalkBwd& p, int64_t d, int64_t t, int64_t b, int64_t row,
                              const Place& place, int64_t unit) {
    const RnnShape& shape = p.walk.shape;
    const int64_t hidden = shape.hidden, positions = p.walk.positions;
    const int64_t y = (place.position * shape.directions + d) * hidden + unit;
    if (p.dy) r.dy = to_float(((const T*)p.dy)[y]);
    if (C::kSaved) {
      const int64_t at = d * positions + (p.gates_lie_as_y ? place.position : place.saved);
      PF_UNROLL_ALL
      for (int g = 0; g < C::kSaved; g++) r.gates[g] = p.gates[(at * 4 + g) * hidden + unit];
      const Place before = place_at(p.walk.rows, shape, positions, t + (d == 0 ? -1 : 1), b, row);
      const int64_t initial = (d * shape.batch + row) * hidden + unit;
      if (C::kHasC) {
        r.c = p.cells[(d * positions + place.saved) * hidden + unit];
        r.c_or_h_before = before.is_active ? p.cells[(d * positions + before.saved) * hidden + unit]
                                           : to_float(((const T*)p.c_0)[initial]);
        if (p.dcells) r.dcell = p.dcells[(d * positions + place.saved) * hidden + unit];
      } else {
        r.c_or_h_before =
            to_float(before.is_active ? ((const T*)p.y)[(before.position * shape.directions + d) * hidden + unit]
                                      : ((const T*)p.h_0)[initial]);
      }
    } else {
      r.y = to_float(((const T*)p.y)[y]);
    }
  }

  __device__ void operator()(RnnWalkBwd p, Grid grid) const {
    PF_DYNAMIC_SHARED(float, sums);  // then weights, then states
    Words* const shared = as_vector<Words>(sums + kSumsSize<kTiles>);
    const RnnShape& shape = p.walk.shape;
    const RnnRows& rows = p.walk.rows;
    const int64_t hidden = shape.hidden;
    const Own<kUnits> own(grid, kExchanged);
    const int64_t d = own.direction;

    const int each = (int)(grid.pitch / kPieceBytes), all = each * kExchanged, parts = all < kWarps ? all : kWarps;
    const int beyond = (all + kWarps - 1) / kWarps - kHeld;
    Weights<A, kTiles, kHeld> weights;
    weights.take(all, shared, [&](int row, int piece, int element) {
      const int64_t unit = own.first_unit + row, gate = piece / each;
      const int64_t k = (int64_t)(piece % each) * kPieceElements<A> + element;
      if (unit >= hidden || k >= hidden) return T{};
      return ((const T*)p.walk.weights[d].w_hh)[(gate * hidden + k) * hidden + unit];
    });

    const int own_unit = (int)threadIdx.x % kUnits, column = (int)threadIdx.x / kUnits;
    const int64_t unit = own.first_unit + own_unit;
    const bool has_unit = column < kColumns && unit < hidden;
    float* const dh_own = (float*)(shared + (beyond > 0 ? beyond : 0) * kWarps * kTiles * 2 * kWarp) + own_unit;
    float* const dc_own = dh_own + kMostRows * kUnits;
    for (int row = column; has_unit && row < own.rows; row += kColumns) {
      const int64_t state = (d * shape.batch + row_of(rows, shape, own.first_row + row)) * hidden + unit;
      dh_own[row * kUnits] = p.dh_n ? to_float(((const T*)p.dh_n)[state]) : 0.0f;
      if (C::kHasC) dc_own[row * kUnits] = p.dc_n ? to_float(((const T*)p.dc_n)[state]) : 0.0f;
    }

    for (int64_t step = 0; step <= shape.length; step++) {  // the last one is of the initial states
      const int64_t t = time_of(shape, 1 - d, step), later = step ? active_at(rows, shape, t + (d == 0 ? 1 : -1)) : 0;
      for (int first = 0; first < own.rows || first == 0; first += kColumns) {
        const int row = first + column;
        const int64_t b = own.first_row + row;
        const bool is_there = has_unit && row < own.rows;
        Place place = {};
        Read r = {};
        if (is_there && step < shape.length) {
          const int64_t of_batch = row_of(rows, shape, b);
          place = place_at(rows, shape, p.walk.positions, t, b, of_batch);
          if (place.is_active) read(r, p, d, t, b, of_batch, place, unit);
        }
        if (first == 0 && step) wait_for(own.flag, (uint32_t)step * (uint32_t)grid.blocks);
        const bool has_products = own.first_row + first < later;
        if (has_products && weights.pieces) {
          float part[kTiles][4];
          weights.multiply(own.rows_at(step, first), own.row_bytes, part);
          store_sums<kTiles>(sums, part);
        }
        __syncthreads();
        if (is_there) {
          float dh = dh_own[row * kUnits], d_gates[C::kSlots] = {};
          if (has_products) dh += sum_of<kTiles>(sums, parts, own_unit, column);
          if (place.is_active) {
            float dc = C::kHasC ? dc_own[row * kUnits] + r.dcell : 0.0f;
            dh = C::backward(shape.cell, dh + r.dy, dc, r.gates, r.c, r.c_or_h_before, r.y, d_gates);
            if (C::kHasC) dc_own[row * kUnits] = dc;
          }
          dh_own[row * kUnits] = dh;
          if (step < shape.length) {
            T* const published = (T*)own.rows_at(step + 1, row);
            T* const to = (T*)p.dgates + (d * p.walk.positions + place.position) * C::kSlots * hidden + unit;
            PF_UNROLL_ALL
            for (int slot = 0; slot < C::kSlots; slot++) {
              const T value = from_float<T>(d_gates[slot]);
              if (place.is_active || !rows.is_packed) to[slot * hidden] = value;
              const int gate = slot - (C::kSlots - C::kGates);
              if (gate >= 0) published[gate * (grid.pitch / (int)sizeof(T)) + unit] = value;
            }
          }
        }
        if (first + kColumns < own.rows) __syncthreads();  // sums are written again
      }
      if (step < shape.length) tell(own.flag);
    }
    for (int row = column; has_unit && row < own.rows; row += kColumns) {
      const int64_t state = (d * shape.batch + row_of(rows, shape, own.first_row + row)) * hidden + unit;
      if (p.dh_0) ((T*)p.dh_0)[state] = from_float<T>(dh_own[row * kUnits]);
      if (C::kHasC && p.dc_0) ((T*)p.dc_0)[state] = from_float<T>(dc_own[row * kUnits]);
    }
  }
};

}  // namespace pf::cuda::recurrent
