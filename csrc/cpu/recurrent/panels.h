// Weights of the recurrent kernels as panels (tile.h). For the forward, of each direction:
//
//   [panel of units]    [k of x, then of h]   all gates of these units
//   [panel of units]                          biases, kStripRow
//   [panel of outputs]  [unit]                the projection, where there is one
//
// For the backward the transposed products: [panel of outputs] [gate and unit] for dgates times w_hh, then
// [panel of units] [output] for dh times w_hr.
//
// They are panels of operands T (simd/operand.h): of pairs of bf16, k counts these. Those of x, of h and of each gate
// begin anew, and the last has a zero where its sequence of elements is odd.
#pragma once
#include "../../common/recurrent.h"
#include "../core/parallel.h"
#include "../simd/transpose.h"
#include "gates.h"
#include "team.h"

namespace PF_ISA::recurrent {

namespace {

template <int kGates>
constexpr int kUnitVectors = kGates == 1 ? 4 : 1;  // vectors of units in a panel
static_assert(kUnitVectors<1> == kSlots, "without gates a panel fills its strip");
template <int kGates>
constexpr int kPanelVectors = kGates * kUnitVectors<kGates>;

// Where the panels of the forward lie.
template <class T, int kGates>
struct FwdPanels {
  static constexpr int64_t units = kUnitVectors<kGates> * kLanes<T>, width = kPanelVectors<kGates> * kLanes<T>;
  static_assert(sizeof(T) == sizeof(Acc<T>), "biases lie among panels");
  int64_t x_size, count, panel_size, out_count, out_size, direction_size;
  T* base;

  FwdPanels(const RnnShape& s, const void* memory) : base((T*)memory) {
    count = ceil_div(s.hidden, units);
    x_size = depth_of<T>(s.input) * width;
    panel_size = x_size + depth_of<T>(s.output) * width;
    out_count = s.has_projection ? ceil_div(s.output, kStripRow<T>) : 0;
    out_size = depth_of<T>(s.hidden) * kStripRow<T>;
    direction_size = count * (panel_size + kStripRow<T>)+out_count * out_size;
  }
  T* x(int64_t direction, int64_t panel) const { return base + direction * direction_size + panel * panel_size; }
  T* h(int64_t direction, int64_t panel) const { return x(direction, panel) + x_size; }
  Acc<T>* bias(int64_t direction, int64_t panel) const { return (Acc<T>*)x(direction, count) + panel * kStripRow<T>; }
  T* out(int64_t direction, int64_t panel) const { return (T*)bias(direction, count) + panel * out_size; }
};

// Where the panels of the backward lie. GRU's order of k is the hidden part of n, r, z (backward.h).
template <class T>
struct BwdPanels {
  int64_t count, gate_size, panel_size, out_count, out_size, direction_size;
  T* base;

  BwdPanels(const RnnShape& s, const void* memory) : base((T*)memory) {
    count = ceil_div(s.output, kStripRow<T>);
    gate_size = depth_of<T>(s.hidden) * kStripRow<T>;
    panel_size = gate_count(s.cell) * gate_size;
    out_count = s.has_projection ? ceil_div(s.hidden, kStripRow<T>) : 0;
    out_size = depth_of<T>(s.output) * kStripRow<T>;
    direction_size = count * panel_size + out_count * out_size;
  }
  T* h(int64_t direction, int64_t panel) const { return base + direction * direction_size + panel * panel_size; }
  T* out(int64_t direction, int64_t panel) const { return h(direction, count) + panel * out_size; }
};

// Rows [0, there) of w [.., columns] become lanes: out[k * out_stride + lane], zero in the lanes that are not there.
template <class S, class T>
void pack_rows(const S* w, int64_t there, int64_t columns, T* out, int64_t out_stride) {
  constexpr int lanes = kLanes<T>, terms = kTerms<T>;
  for (int64_t k = 0; k < depth_of<T>(columns); k += lanes) {
    const int64_t left = columns - k * terms;
    Vec<T> square[lanes];
    for (int i = 0; i < lanes; i++)
      square[i] = i < there ? load_operands_n<T>(w + i * columns + k * terms, left) : Vec<T>{};
    transpose(square);
    for (int i = 0; i < min_of(lanes, depth_of<T>(left)); i++) store(out + (k + i) * out_stride, square[i]);
  }
}

// Columns [0, there) of w [rows, columns] become the lanes of out [depth of rows, kStripRow].
template <class S, class T>
void pack_columns(const S* w, int64_t columns, int64_t there, int64_t rows, T* out) {
  constexpr int lanes = kLanes<T>, terms = kTerms<T>;
  for (int64_t k = 0; k < depth_of<T>(rows); k++)
    for (int64_t c = 0; c < kStripRow<T>; c += lanes)
      store(out + k * kStripRow<T> + c,
            c < there ? load_joined_n<T>(w + k * terms * columns + c, columns, rows - k * terms, there - c) : Vec<T>{});
}

// One panel of the forward: all gates of its units.
template <class S, int kGates>
void pack_units(const RnnShape& s, const RnnWeights& w, int64_t panel, Operand<S>* x, Operand<S>* h, Acc<S>* bias) {
  typedef FwdPanels<Operand<S>, kGates> Panels;
  constexpr int lanes = kLanes<Acc<S>>;
  memset(bias, 0, kStripRow<Acc<S>> * sizeof(Acc<S>));
  for (int gate = 0; gate < kGates; gate++)
    for (int v = 0; v < kUnitVectors<kGates>; v++) {
      const int64_t unit = panel * Panels::units + v * lanes, there = max_of(0, min_of(lanes, s.hidden - unit));
      const int64_t row = there ? gate * s.hidden + unit : 0;
      const int at = (gate + v) * lanes;
      pack_rows((const S*)w.w_ih + row * s.input, there, s.input, x + at, Panels::width);
      pack_rows((const S*)w.w_hh + row * s.output, there, s.output, h + at, Panels::width);
      if (!w.b_ih) continue;
      const Vec<Acc<S>> of_x = load_n((const S*)w.b_ih + row, there), of_h = load_n((const S*)w.b_hh + row, there);
      const bool is_apart = kGates == 3 && gate == 2;
      store(bias + at, is_apart ? of_x : of_x + of_h);
      if (is_apart) store(bias + 3 * lanes, of_h);
    }
}

template <class S, int kGates>
void pack_fwd(const RnnPack& p, int threads) {
  typedef Operand<S> T;
  const RnnShape& s = p.shape;
  const FwdPanels<T, kGates> panels(s, p.panels);
  const int64_t each = panels.count + panels.out_count;
  parallel_ranges(s.directions * each, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t d = i / each, panel = i % each, out = panel - panels.count;
      const RnnWeights& w = p.weights[d];
      if (out < 0) {
        pack_units<S, kGates>(s, w, panel, panels.x(d, panel), panels.h(d, panel), panels.bias(d, panel));
        continue;
      }
      for (int v = 0; v < kSlots; v++) {
        const int64_t column = out * kStripRow<T> + v * kLanes<T>;
        const int64_t there = max_of(0, min_of(kLanes<T>, s.output - column));
        pack_rows((const S*)w.w_hr + (there ? column : 0) * s.hidden, there, s.hidden,
                  panels.out(d, out) + v * kLanes<T>, kStripRow<T>);
      }
    }
  });
}

template <class S>
void pack_bwd(const RnnPack& p, int threads) {
  typedef Operand<S> T;
  const RnnShape& s = p.shape;
  const BwdPanels<T> panels(s, p.panels);
  const int64_t each = panels.count + panels.out_count;
  parallel_ranges(s.directions * each, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t d = i / each, panel = i % each, out = panel - panels.count;
      if (out >= 0) {
        const int64_t column = out * kStripRow<T>;
        pack_columns((const S*)p.weights[d].w_hr + column, s.hidden, s.hidden - column, s.output, panels.out(d, out));
        continue;
      }
      const int64_t column = panel * kStripRow<T>, there = s.output - column, rows = s.hidden;
      const S* w = (const S*)p.weights[d].w_hh + column;
      T* to = panels.h(d, panel);
      const int64_t gates = gate_count(s.cell);
      for (int64_t i = 0; i < gates; i++) {
        const int64_t gate = s.cell == Cell::gru ? (i + 2) % gates : i;
        pack_columns(w + gate * rows * s.output, s.output, there, rows, to + i * panels.gate_size);
      }
    }
  });
}

}  // namespace

void pack(const RnnPack& p, int num_threads) {
  for_dtype(p.shape.dtype, [&](auto storage) {
    using S = decltype(storage);
    if (p.backward) return pack_bwd<S>(p, num_threads);
    for_gates(p.shape.cell, [&](auto gates) { pack_fwd<S, decltype(gates)::count>(p, num_threads); });
  });
}

}  // namespace PF_ISA::recurrent
