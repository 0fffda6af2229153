// What the backward makes of all steps at once: the gates again where they were not kept, then, from their gradients,
// dx and the gradients of the weights.
#pragma once
#include "../gemm/gemm.h"
#include "backward.h"

namespace PF_ISA::recurrent {

namespace {

// For each direction x in its arithmetic type and the h that each step began with, as rows of the backward's work.
template <class S>
void gather_steps(const RnnBwd& p, const BwdMemory<Operand<S>>& m, int64_t work_rows, int threads) {
  typedef Acc<S> T;
  const RnnShape& s = p.shape;
  auto copy = [](const S* from, T* to, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes<T>) store_n(to + i, load_n(from + i, count - i), count - i);
  };
  Part every = {};
  every.every = 1;
  parallel_ranges(s.length, 1, work_rows * s.output < kThreadFlops ? 1 : threads, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; t++)
      for (int64_t b = 0; b < active_sequences(s, p.rows, t); b++) {
        const int64_t row = work_row(p.rows, t, b);
        for (int64_t d = 0; d < s.directions; d++) {
          const Places places = {s, p.rows, every, d};
          const int64_t before = d ? t + 1 : t - 1;
          const S* h = b < active_sequences(s, p.rows, before) ? (const S*)p.y + places.y(before, b) * s.output
                                                               : (const S*)p.h_0 + places.state(b) * s.output;
          T* to = m.xh + (d * work_rows + row) * m.xh_row;
          copy((const S*)p.x + places.step(t) * p.rows.x_step_stride + places.sequence(b) * p.rows.x_row_stride, to,
               s.input);
          for (int64_t i = s.input; i < m.x_width; i++) to[i] = 0;
          copy(h, to + m.x_width, s.output);
          if (d == 0) m.places[row] = places.y(t, b) / s.directions;
        }
      }
  });
}

constexpr int64_t kGateRows = 96;  // of x and h for which gates are made at a time

// What a thread makes gates in: sums, and x and h as factors where these are not of the arithmetic type.
template <class T>
struct GateMemory {
  int64_t stride;
  Acc<T>* strip;
  Term<T>* xh;
  GateMemory(Carver& from, const BwdMemory<T>& m) {
    stride = round_up(m.xh_row, kTerms<T>);
    strip = from.take<Acc<T>>(kGateRows * kStripRow<T>);
    xh = from.take<Term<T>>(kTerms<T> > 1 ? kGateRows * stride : 0);
  }
};

// The gates of all steps, into the memory that their gradients will take.
template <class S, int kGates>
void gates_again(const RnnBwd& p, const BwdMemory<Operand<S>>& m, int64_t work_rows, int threads) {
  typedef Acc<S> T;
  typedef Operand<S> O;
  typedef Vec<T> V;
  typedef FwdPanels<O, kGates> Panels;
  const RnnShape& s = p.shape;
  const Panels panels(s, p.fwd_panels);
  const int64_t blocks = ceil_div(work_rows, kGateRows);
  Carver size = {nullptr, 0};
  GateMemory<O>(size, m);
  parallel_tasks(blocks * s.directions, threads, [&](int64_t task, int thread) {
    const int64_t d = task / blocks, row = task % blocks * kGateRows, rows = min_of(kGateRows, work_rows - row);
    const T* steps = m.xh + (d * work_rows + row) * m.xh_row;
    Carver own = {m.rest + thread * size.used, 0};
    const GateMemory<O> memory(own, m);
    T* strip = memory.strip;
    const Term<O>* xh;
    int64_t stride;
    if constexpr (kTerms<O> > 1) {
      stride = memory.stride;
      xh = memory.xh;
      for (int64_t j = 0; j < rows; j++) {
        for (int64_t i = 0; i < m.xh_row; i += kLanes<T>)
          store_n(memory.xh + j * stride + i, load_n(steps + j * m.xh_row + i, m.xh_row - i), m.xh_row - i);
        if (stride > m.xh_row) memory.xh[j * stride + m.xh_row] = {};
      }
    } else {
      stride = m.xh_row;
      xh = steps;
    }
    for (int64_t panel = 0; panel < panels.count; panel++) {
      for (int64_t j = 0; j < rows; j++)
        memcpy(strip + j * kStripRow<T>, panels.bias(d, panel), kStripRow<T> * sizeof(T));
      product<O, kGates>(xh, stride, rows, s.input, panels.x(d, panel), strip, 2);
      product<O, kGates>(xh + m.x_width, stride, rows, s.output, panels.h(d, panel), strip, 3);
      const int64_t unit = panel * Panels::units;
      for (int64_t j = 0; j < rows; j++) {
        V v[kSlots];
        for (int i = 0; i < kSlots; i++) v[i] = load(strip + j * kStripRow<T> + i * kLanes<T>);
        activate_gates<kGates>(v);
        T* to = m.dgates + (d * work_rows + row + j) * m.row + unit;
        for (int i = 0; i < kSlots; i++)
          store_n(to + (kGates == 3 ? (i + 1) % 4 : i) * s.hidden, v[i], s.hidden - unit);
      }
    }
  });
}

// Where a product's sums go: row r of the product to `rows` [r], or to (r + first) % count.
template <class S>
struct GradientElement {
  S* to;
  int64_t width, first, count;
  const int64_t* rows;
  bool adds;
  inline __attribute__((always_inline)) S* place(int64_t row, int64_t column) const {
    if (rows)
      row = rows[row];
    else if (first)
      row = row + first < count ? row + first : row + first - count;
    return to + row * width + column;
  }
  inline __attribute__((always_inline)) void operator()(int64_t row, int64_t column, Vec<Acc<S>> sum,
                                                        int64_t count) const {
    S* at = place(row, column);
    store_n(at, adds ? sum + load_n(at, count) : sum, count);
  }
};

// The same for the gradients of w_ih and w_hh side by side, from column `first` of x and h on.
template <class S>
struct WeightElement {
  S *w_ih, *w_hh;
  int64_t input, output, x_width, first;
  inline __attribute__((always_inline)) S* place(int64_t row, int64_t column) const {
    column += first;
    return column < x_width ? w_ih + row * input + column : w_hh + row * output + column - x_width;
  }
  inline __attribute__((always_inline)) void operator()(int64_t row, int64_t column, Vec<Acc<S>> sum,
                                                        int64_t count) const {
    const int64_t at = column + first;
    if (at >= x_width) return store_n(place(row, column), sum, count);
    if (at < input) store_n(place(row, column), sum, min_of(count, input - at));
    if (at + count <= x_width) return;
    Acc<S> values[kLanes<Acc<S>>];  // a transposed product's columns, which lie across the border
    store(values, sum);
    for (int64_t i = x_width - at; i < count; i++) put(place(row, column + i), values[i]);
  }
};

// Sums of columns: of 16 rows, of 16 of these sums, of all of those. A serial sum is then never long.
template <class T>
void sum_columns(const T* a, int64_t stride, int64_t rows, int64_t columns, T* sums, int threads) {
  constexpr int vectors = 4, lanes = kLanes<T>;
  constexpr int64_t width = vectors * lanes, few = 16;
  parallel_ranges(
      ceil_div(columns, width), 1, rows * columns < kThreadFlops ? 1 : threads, [&](int64_t begin, int64_t end) {
        for (int64_t column = begin * width; column < min_of(columns, end * width); column += width) {
          Vec<T> total[vectors] = {}, middle[vectors] = {};
          for (int64_t row = 0; row < rows; row += few) {
            Vec<T> sum[vectors] = {};
            for (int64_t r = row; r < min_of(rows, row + few); r++)
              for (int v = 0; v < vectors; v++)
                sum[v] += load_n(a + r * stride + column + v * lanes, max_of(0, columns - column - v * lanes));
            const bool is_last = row / few % few == few - 1 || row + few >= rows;
            for (int v = 0; v < vectors; v++) {
              middle[v] += sum[v];
              if (is_last) total[v] += middle[v], middle[v] = Vec<T>{};
            }
          }
          for (int v = 0; v < vectors && column + v * lanes < columns; v++)
            store_n(sums + column + v * lanes, total[v], columns - column - v * lanes);
        }
      });
}

// to [m, n] = a^T b, both with one row for each of the backward's.
template <class T>
using Product = gemm::Product<Acc<T>, T>;
template <class T>
PF_INLINE Product<T> outer_product(const Acc<T>* a, int64_t a_stride, int64_t m, const Acc<T>* b, int64_t b_stride,
                                   int64_t n, int64_t rows) {
  return {a, 1, a_stride, b, b_stride, 1, nullptr, m, n, rows};
}
template <class T>
PF_INLINE Product<T> dx_product(const RnnShape& s, const BwdMemory<T>& m, int64_t rows, int64_t gates) {
  return {m.dgates, m.row, 1, nullptr, 0, 0, m.w_ih, rows, s.input, gates * s.hidden};
}

// Workspace of the largest of the products.
template <class T>
int64_t products_bytes(const RnnShape& s, const BwdMemory<T>& m, int64_t rows, int threads) {
  const int64_t gates = gate_count(s.cell), gate_rows = gates * s.hidden;
  typedef gemm::Plan<Acc<T>, T> Plan;
  auto bytes = [&](const Product<T>& g) { return Plan::bytes(Plan::plan(g, threads)); };
  int64_t most = bytes(dx_product<T>(s, m, rows, gates));
  const int64_t widths[] = {s.input, s.output, m.xh_row};
  for (const int64_t columns : widths)
    most = max_of(most, bytes(outer_product<T>(m.dgates, m.row, gate_rows, m.xh, m.xh_row, columns, rows)));
  if (s.has_projection)
    most = max_of(most, bytes(outer_product<T>(m.dh, s.output, s.output, m.out, s.hidden, s.hidden, rows)));
  Carver gates_again = {nullptr, 0};
  for (int i = 0; i < threads; i++) GateMemory<T>(gates_again, m);
  return max_of(most, gates_again.used);
}

template <class S, int kGates>
void products(const RnnBwd& p, const BwdMemory<Operand<S>>& m, int64_t rows, int threads) {
  typedef Acc<S> T;
  typedef Operand<S> O;
  const RnnShape& s = p.shape;
  const int64_t hidden = s.hidden, gate_rows = kGates * hidden;
  auto multiply = [&](const Product<O>& g, const GradientElement<S>& to) {
    gemm::multiply(g, m.rest, gemm::sink_of<T>(to), threads);
  };
  if (p.dx && p.rows.order)
    memset(p.dx, 0, s.length * s.batch * s.input * sizeof(S));  // after the ends of the sequences
  for (int64_t d = 0; d < s.directions; d++) {
    const T *dgates = m.dgates + d * rows * m.row, *of_x = dgates + kFirstOfX<kGates> * hidden;
    const T* xh = m.xh + d * rows * m.xh_row;
    const RnnGradients& grads = p.grads[d];
    if (p.dx) {
      gemm::pack_b((const S*)p.weights[d].w_ih, s.input, 1, gate_rows, s.input, m.w_ih, threads);
      Product<O> g = dx_product(s, m, rows, kGates);
      g.a = of_x;
      multiply(g, {(S*)p.dx, s.input, 0, 0, m.places, d > 0});
    }
    if constexpr (kGates == 3) {  // the gates of x and of h are not the same
      if (grads.w_ih)
        multiply(outer_product<O>(of_x, m.row, gate_rows, xh, m.xh_row, s.input, rows),
                 {(S*)grads.w_ih, s.input, 0, 0, nullptr, false});
      if (grads.w_hh)
        multiply(outer_product<O>(dgates, m.row, gate_rows, xh + m.x_width, m.xh_row, s.output, rows),
                 {(S*)grads.w_hh, s.output, 2 * hidden, gate_rows, nullptr, false});
    } else if (grads.w_ih || grads.w_hh) {
      const int64_t first = grads.w_ih ? 0 : m.x_width, end = grads.w_hh ? m.xh_row : s.input;
      const WeightElement<S> to = {(S*)grads.w_ih, (S*)grads.w_hh, s.input, s.output, m.x_width, first};
      gemm::multiply(outer_product<O>(dgates, m.row, gate_rows, xh + first, m.xh_row, end - first, rows), m.rest,
                     gemm::sink_of<T>(to), threads);
    }
    if (grads.w_hr)
      multiply(outer_product<O>(m.dh + d * rows * s.output, s.output, s.output, m.out + d * rows * hidden, hidden,
                                hidden, rows),
               {(S*)grads.w_hr, hidden, 0, 0, nullptr, false});
    if (!grads.b_ih && !grads.b_hh) continue;
    sum_columns(dgates, m.row, rows, m.row, m.sums, threads);
    for (int64_t i = 0; i < gate_rows; i++) {
      if (grads.b_ih) put((S*)grads.b_ih + i, m.sums[kFirstOfX<kGates> * hidden + i]);
      if (grads.b_hh) put((S*)grads.b_hh + i, m.sums[kGates == 3 ? (i + hidden) % gate_rows : i]);
    }
  }
}

template <class S, int kGates>
void bwd_layer(const RnnBwd& p, int threads) {
  typedef Operand<S> O;
  const RnnShape& s = p.shape;
  const int64_t last = s.length - 1;
  const int64_t rows = p.rows.active ? p.rows.offsets[last] + p.rows.active[last] : s.length * s.batch;
  Carver carver = {(char*)p.workspace, 0};
  Arrival* arrivals = carver.take<Arrival>(threads);
  const BwdMemory<O> memory(carver, s, rows);
  gather_steps<S>(p, memory, rows, threads);
  if constexpr (kGates > 1)
    if (!p.gates) gates_again<S, kGates>(p, memory, rows, threads);
  run_team(s, threads, arrivals, [&](int64_t direction, Part& part, const Plan& plan) {
    Carver own = carver;
    const StepMemory<O> mine(own, s, plan, part);
    BwdThread<S, kGates> thread = {
        p, s, part, direction, {s, p.rows, part, direction}, {s, p.panels}, memory, mine, rows, 0, 0, 0, 0, 0};
    thread.run();
  });
  products<S, kGates>(p, memory, rows, threads);
}

}  // namespace

void bwd(const RnnBwd& p, int num_threads) {
  for_dtype(p.shape.dtype, [&](auto storage) {
    for_gates(p.shape.cell, [&](auto gates) { bwd_layer<decltype(storage), decltype(gates)::count>(p, num_threads); });
  });
}

}  // namespace PF_ISA::recurrent
