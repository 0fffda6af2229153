// The backward through time: the gradients of all gates before their activations, step by step. What follows from
// these all at once (dx and the gradients of the weights) is backward_products.h.
//
// A step multiplies the gradients of the step after it with the transposed recurrent weights, a panel of units at a
// time, and goes on to the gates of these units where the sums are. Gradients of gates lie in rows of
// kGateRow<kGates> * hidden, in the order of the tensors' rows (of the sequences by length where these are ragged): i,
// f, g, o; for GRU the hidden part of n, r, z, n, so that h's product reads the first three and x's the last three.
// Products of bf16 where it is multiplied in pairs round them to it.
#pragma once
#include "../gemm/tile.h"
#include "forward.h"

namespace PF_ISA::recurrent {

namespace {

template <int kGates>
constexpr int kGateRow = gradient_count(kGates);
template <int kGates>
constexpr int kFirstOfX = kGates == 3 ? 1 : 0;

// The row that the backward works on for step t of the sequence at position b.
PF_INLINE int64_t work_row(const RnnRows& rows, int64_t t, int64_t b) {
  return rows.active ? rows.offsets[t] + b : t * rows.y_step_rows + b * rows.y_row_rows;
}

// The whole call's memory.
template <class T>
struct BwdMemory {
  typedef Acc<T> A;
  int64_t row;           // elements of a row of dgates
  A *dgates, *dh, *out;  // [directions, rows, ..]; dh of all steps and the cells' output: with a projection
  // [directions, rows, xh_row]: what the gates were made from, x and, from column x_width on, h before the step.
  A* xh;
  int64_t x_width, xh_row;
  T* w_ih;  // for the products
  A* sums;
  int64_t* places;  // [rows]: of the tensors
  char* rest;
  BwdMemory(Carver& from, const RnnShape& s, int64_t rows) {
    const int64_t d = s.directions;
    row = gradient_count(gate_count(s.cell)) * s.hidden;
    dgates = from.take<A>(d * rows * row);
    dh = from.take<A>(s.has_projection ? d * rows * s.output : 0);
    out = from.take<A>(s.has_projection ? d * rows * s.hidden : 0);
    x_width = round_up(s.input, kLanes<T>);  // no vector of columns belongs to both
    xh_row = x_width + s.output;
    xh = from.take<A>(d * rows * xh_row);
    w_ih = from.take<T>(depth_of<T>(row) * round_up(s.input, gemm::kPanel<T>));
    sums = from.take<A>(round_up(row, kStripRow<T>));
    places = from.take<int64_t>(rows);
    rest = from.at + from.used;
  }
};

// A thread's and its group's.
template <class T>
struct StepMemory {
  int64_t gate_width, gates_stride, output_stride, hidden_stride;
  Acc<T>* strip;           // own
  Term<T>*dgates[2], *dh;  // of the step after and of this one; with a projection
  Acc<T>* carried;         // dc, or GRU's dh z
  StepMemory(Carver& from, const RnnShape& s, const Plan& plan, const Part& part) {
    const int64_t rows = group_rows(s, plan);
    gate_width = round_up(s.hidden, kTerms<T>);
    gates_stride = round_up(gate_count(s.cell) * gate_width, kStripRow<T>) + kLine<T>;
    output_stride = round_up(s.output, kStripRow<T>) + kLine<T>;
    hidden_stride = round_up(s.hidden, kStripRow<T>) + kLine<T>;
    strip = from.take<Acc<T>>(plan.threads * rows * kStripRow<T>) + part.thread * rows * kStripRow<T>;
    const int64_t group = part.side * plan.groups + part.group, groups = plan.sides * plan.groups;
    auto take = [&](int64_t stride) { return from.take<Term<T>>(groups * rows * stride) + group * rows * stride; };
    for (Term<T>*& one : dgates) one = take(gates_stride);
    dh = take(s.has_projection ? output_stride : 0);
    carried = from.take<Acc<T>>(groups * rows * hidden_stride) + group * rows * hidden_stride;
  }
};

template <class S, int kGates>
struct BwdThread {
  typedef Acc<S> T;
  typedef Operand<S> O;  // what is multiplied
  typedef Term<O> H;     // its factors
  typedef Vec<T> V;
  static constexpr int lanes = kLanes<T>;

  const RnnBwd& p;
  const RnnShape& s;
  Part& part;
  const int64_t direction;
  const Places places;
  const BwdPanels<O> panels;
  const BwdMemory<O> all;
  const StepMemory<O> memory;
  const int64_t work_rows;
  H *dgates, *dgates_after;
  int64_t t, rows, rows_after;  // the step, its sequences, and those of the step that was before in this pass

  // Does sequence j have a step that gave this one its state? Else it was h_0, c_0.
  int64_t t_before() const { return direction ? t + 1 : t - 1; }
  T* work(T* base, int64_t width, int64_t j) const {
    return base + (direction * work_rows + work_row(p.rows, t, places.position(j))) * width;
  }

  // Where the rows of sequence j lie in this step, from unit 0 on: found once for all units of a panel.
  struct Row {
    const T *gates, *cells, *before, *dcells;  // gates: the first of four, hidden apart; null: in `kept`
    const S *y, *state_before, *dc_n;
    H* now;
    T *kept, *carried, *out;
    bool is_last;
  };

  Row row(int64_t j) const {
    const bool is_first = j >= places.active(t_before());
    Row r = {};
    r.is_last = j >= rows_after;
    r.kept = work(all.dgates, all.row, j);
    r.now = dgates + j * memory.gates_stride;
    r.carried = memory.carried + j * memory.hidden_stride;
    if (s.has_projection) r.out = work(all.out, s.hidden, j);
    if (kGates > 1 && p.gates) r.gates = (const T*)p.gates + places.kept(t, j) * kSlots * s.hidden;
    if constexpr (kGates == 4) {
      r.cells = (const T*)p.cells + places.kept(t, j) * s.hidden;
      if (is_first)
        r.state_before = (const S*)p.c_0 + places.state(j) * s.hidden;
      else
        r.before = (const T*)p.cells + places.kept(t_before(), j) * s.hidden;
      if (r.is_last && p.dc_n) r.dc_n = (const S*)p.dc_n + places.state(j) * s.hidden;
      if (p.dcells) r.dcells = (const T*)p.dcells + places.kept(t, j) * s.hidden;
    }
    if constexpr (kGates == 3)
      r.state_before =
          is_first ? (const S*)p.h_0 + places.state(j) * s.output : (const S*)p.y + places.y(t_before(), j) * s.output;
    if constexpr (kGates == 1) r.y = (const S*)p.y + places.y(t, j) * s.output;
    return r;
  }

  // Gate `number`, in torch's order, of these units.
  V gate(const Row& r, int number, int64_t unit, int64_t count) const {
    const T* from =
        r.gates ? r.gates + number * s.hidden : r.kept + (kGates == 3 ? (number + 1) % 4 : number) * s.hidden;
    return load_n(from + unit, count);
  }

  template <int kCount>
  inline __attribute__((always_inline)) void put(const Row& r, int64_t unit, const V (&d)[kCount], int64_t count) {
    PF_UNROLL
    for (int i = 0; i < kCount; i++) {
      store_n(r.kept + i * s.hidden + unit, d[i], count);
      if (i < kGates) store_n(r.now + i * memory.gate_width + unit, d[i], count);
    }
  }

  // Asks for what `through_cell` will read and write of sequence j in this panel: pieces too short and too far apart
  // for the processor to foresee them.
  void ask_for(int64_t panel, int64_t j) const {
    const int64_t unit = panel * kStripRow<T>, count = min_of(kStripRow<T>, s.hidden - unit);
    T* to = work(all.dgates, all.row, j) + unit;
    for (int i = 0; i < kGateRow<kGates>; i++) prefetch_far(to + i * s.hidden, count);
    if (kGates > 1 && p.gates)
      for (int i = 0; i < kSlots; i++)
        prefetch_far((const T*)p.gates + (places.kept(t, j) * kSlots + i) * s.hidden + unit, count);
    if (p.dy) prefetch_far((const S*)p.dy + places.y(t, j) * s.output + unit, count);
    const bool is_first = j >= places.active(t_before());
    if (kGates == 4 && !is_first) prefetch_far((const T*)p.cells + places.kept(t_before(), j) * s.hidden + unit, count);
    if (kGates == 3 && !is_first) prefetch_far((const S*)p.y + places.y(t_before(), j) * s.output + unit, count);
    if (kGates == 1) prefetch_far((const S*)p.y + places.y(t, j) * s.output + unit, count);
  }

  // From the gradient of the cell's output to those of its gates.
  inline __attribute__((always_inline)) void through_cell(const Row& r, int64_t unit, V dh, int64_t count) {
    V v[kSlots], d[kGateRow<kGates>];
    if constexpr (kGates > 1)
      for (int i = 0; i < kSlots; i++) v[i] = gate(r, i, unit, count);
    if constexpr (kGates == 4) {
      const V c = gate_tanh(load_n(r.cells + unit, count));
      const V before = r.before ? load_n(r.before + unit, count) : load_n(r.state_before + unit, count);
      V dc = V{};
      if (!r.is_last) dc = load(r.carried + unit);
      if (r.dc_n) dc = load_n(r.dc_n + unit, count);
      if (r.dcells) dc += load_n(r.dcells + unit, count);
      if (s.has_projection) store_n(r.out + unit, v[3] * c, count);
      lstm_gradients(v, c, before, dh, dc, d);
      store(r.carried + unit, dc);
    } else if constexpr (kGates == 3) {
      store(r.carried + unit, gru_gradients(v, load_n(r.state_before + unit, count), dh, d));
    } else {
      d[0] = rnn_gradient(s.cell, load_n(r.y + unit, count), dh);
    }
    put(r, unit, d, count);
  }

  // A panel of dh: from y, from the end of the sequence, from the step after.
  void panel_of_h(int64_t panel) {
    T* strip = memory.strip;
    memset(strip, 0, max_of(rows, rows_after) * kStripRow<T> * sizeof(T));
    product<O, kSlots>(dgates_after, memory.gates_stride, rows_after, kGates * memory.gate_width,
                       panels.h(direction, panel), strip, 3, [&](int64_t i) {
                         if (i < rows && !s.has_projection) ask_for(panel, i);
                       });
    for (int64_t j = 0; j < max_of(rows, rows_after); j++, strip += kStripRow<T>) {
      const Row r = j < rows ? row(j) : Row{};
      const S* dy = j < rows && p.dy ? (const S*)p.dy + places.y(t, j) * s.output : nullptr;
      const S* dh_n = j < rows && r.is_last && p.dh_n ? (const S*)p.dh_n + places.state(j) * s.output : nullptr;
      for (int v = 0; v < kSlots; v++) {
        const int64_t unit = panel * kStripRow<T> + v * lanes, count = s.output - unit;
        if (count <= 0) break;
        V dh = load(strip + v * lanes);
        if (kGates == 3 && j < rows_after) dh += load(memory.carried + j * memory.hidden_stride + unit);
        if (j >= rows) {  // the sequence has begun
          if (p.dh_0) store_n((S*)p.dh_0 + places.state(j) * s.output + unit, dh, count);
          if (kGates == 4 && !s.has_projection) put_dc_0(j, unit);
          continue;
        }
        if (dh_n) dh += load_n(dh_n + unit, count);
        if (dy) dh += load_n(dy + unit, count);
        if (s.has_projection) {
          put_factors<O>(memory.dh + j * memory.output_stride + unit, dh, count);
          store_n(work(all.dh, s.output, j) + unit, dh, count);
        } else {
          through_cell(r, unit, dh, count);
        }
      }
    }
  }

  void put_dc_0(int64_t j, int64_t unit) {
    if (p.dc_0)
      store_n((S*)p.dc_0 + places.state(j) * s.hidden + unit, load(memory.carried + j * memory.hidden_stride + unit),
              s.hidden - unit);
  }

  // With a projection: the gradient of the cells' output from dh.
  void panel_of_units(int64_t panel) {
    T* strip = memory.strip;
    memset(strip, 0, rows * kStripRow<T> * sizeof(T));
    product<O, kSlots>(memory.dh, memory.output_stride, rows, s.output, panels.out(direction, panel), strip, 3);
    for (int64_t j = 0; j < max_of(rows, rows_after); j++, strip += kStripRow<T>)
      for (int v = 0; v < kSlots; v++) {
        const int64_t unit = panel * kStripRow<T> + v * lanes;
        if (unit >= s.hidden) break;
        if (j >= rows)
          put_dc_0(j, unit);
        else
          through_cell(row(j), unit, load(strip + v * lanes), s.hidden - unit);
      }
  }

  // Sequences of no steps hand on what they get.
  void pass_on(const void* from, void* to, int64_t width) {
    if (!to) return;
    for (int64_t j = places.active(0); j < part.rows && part.slice == 0; j++) {
      S* row = (S*)to + places.state(j) * width;
      if (from)
        memcpy(row, (const S*)from + places.state(j) * width, width * sizeof(S));
      else
        memset(row, 0, width * sizeof(S));
    }
  }

  // The zero after an odd row of factors; the barrier of the first step comes before anybody reads it.
  void end_rows() {
    for (int64_t j = part.slice; j < part.rows; j += part.slices) {
      for (H* of : memory.dgates)
        for (int i = 0; i < kGates && memory.gate_width > s.hidden; i++)
          of[j * memory.gates_stride + i * memory.gate_width + s.hidden] = H{};
      if (s.has_projection && s.output % kTerms<O>) memory.dh[j * memory.output_stride + s.output] = H{};
    }
  }

  void run() {
    pass_on(p.dh_n, p.dh_0, s.output);
    pass_on(p.dc_n, p.dc_0, s.hidden);
    end_rows();
    rows_after = 0;
    dgates = memory.dgates[0];
    dgates_after = memory.dgates[1];
    for (int64_t step = 0; step <= s.length; step++) {
      t = direction ? step : s.length - 1 - step;
      rows = places.active(t);
      for (int64_t panel = part.begin(panels.count); panel < part.end(panels.count); panel++) panel_of_h(panel);
      if (s.has_projection) {
        part.barrier.wait();
        for (int64_t panel = part.begin(panels.out_count); panel < part.end(panels.out_count); panel++)
          panel_of_units(panel);
      }
      part.barrier.wait();
      rows_after = rows;
      H* before = dgates;
      dgates = dgates_after;
      dgates_after = before;
    }
  }
};

}  // namespace

}  // namespace PF_ISA::recurrent
