// One layer of RNN, LSTM or GRU, forward. In each step a thread takes its panels of units one after the other: the sums
// over x and h of its sequences, then their cells, for which every gate is there. With few sequences the products with
// x are made for several steps at once, so that their weights are read once for all of these.
#pragma once
#include "../core/memory.h"
#include "panels.h"
#include "team.h"

namespace PF_ISA::recurrent {

namespace {

constexpr int64_t kFewSequences = 12, kRowsAhead = 48;  // of one thread: fewer than these project so many rows ahead

// What a thread works in: its own memory, and what the threads of its group share.
template <class T>
struct FwdMemory {
  int64_t ahead;                                       // steps that x is multiplied for at once
  int64_t input_stride, output_stride, hidden_stride;  // of the rows of x, of h, and of c and h before the projection
  Term<T>* x;                                          // own: rows of x
  Acc<T>* strips;                                      // own: sums of one panel, or of all for all steps ahead
  Term<T>*h[2], *unprojected;                          // h before and after a step, and before the projection
  Acc<T>* c;

  // The memory of one thread, or, with a Carver that only counts, all that a call takes in from.used.
  FwdMemory(Carver& from, const RnnShape& s, const Plan& plan, int64_t units, const Part& part) {
    const int64_t rows = group_rows(s, plan), panels = ceil_div(s.hidden, units);
    ahead = rows >= kFewSequences ? 1 : max_of(1, min_of(s.length, kRowsAhead / max_of(rows, 1)));
    // Rows a power of two apart would share few sets of L1.
    output_stride = round_up(s.output, kStripRow<T>) + kLine<T>;
    hidden_stride = round_up(s.hidden, kStripRow<T>) + kLine<T>;
    input_stride = round_up(s.input, kTerms<T>);
    const int64_t x_size = round_up(ahead * rows * depth_of<T>(s.input), kLine<T>);
    const int64_t strips_size = ahead * rows * kStripRow<T> * (ahead > 1 ? ceil_div(panels, plan.slices) : 1);
    const int64_t h_size = rows * output_stride, c_size = rows * hidden_stride;
    T* own = from.take<T>(plan.threads * (x_size + strips_size)) + part.thread * (x_size + strips_size);
    x = (Term<T>*)own;
    strips = (Acc<T>*)(own + x_size);
    const int64_t group = part.side * plan.groups + part.group, groups = plan.sides * plan.groups;
    for (Term<T>*& one : h) one = from.take<Term<T>>(groups * h_size) + group * h_size;
    c = from.take<Acc<T>>(groups * c_size) + group * c_size;
    unprojected = from.take<Term<T>>(s.has_projection ? groups * c_size : 0) + group * c_size;
  }
};

// A value as S would give it back: the next step reads what y says.
template <class S, class V>
PF_INLINE V rounded(V x) {
  if constexpr (sizeof(S) == sizeof(Element<V>)) {
    return x;
  } else {
    S stored[kLanes<Element<V>>];
    store(stored, x);
    return load(stored);
  }
}

// One direction of one layer, as far as one thread makes it.
template <class S, int kGates>
struct FwdThread {
  typedef Acc<S> T;
  typedef Operand<S> O;  // what is multiplied
  typedef Term<O> H;     // x and h as it is
  typedef Vec<T> V;
  typedef FwdPanels<O, kGates> Panels;
  static constexpr int lanes = kLanes<T>, vectors = kPanelVectors<kGates>;

  const RnnFwd& p;
  const RnnShape& s;
  Part& part;
  const int64_t direction;
  const Places places;
  const Panels panels;
  const FwdMemory<O> memory;
  H *h, *h_next;
  int64_t t, rows, last_from;  // the step being made, its sequences, and the first of them that end with it

  // A row of an initial state as its arithmetic type has it, and in `last` where its sequence has no steps.
  template <class To>
  void start_row(const void* from, void* last, int64_t state, int64_t width, To* to, To* too, bool is_over) {
    const S* row = from ? (const S*)from + state * width : nullptr;
    for (int64_t i = 0; i < width; i += lanes) {
      const V value = row ? load_n(row + i, width - i) : V{};
      store_n(to + i, value, width - i);
      if (too) store_n(too + i, value, width - i);
      if (is_over) store_n((S*)last + state * width + i, value, width - i);
    }
  }

  void start() {
    auto end_row = [](H* row, int64_t width) {
      for (int64_t i = width; i < round_up(width, kTerms<O>); i++) row[i] = H{};
    };
    for (int64_t j = part.slice; j < part.rows; j += part.slices) {
      for (H* of : memory.h) end_row(of + j * memory.output_stride, s.output);
      if (s.has_projection) end_row(memory.unprojected + j * memory.hidden_stride, s.hidden);
      const bool is_over = j >= places.active(0);
      start_row(p.h_0, p.h_n, places.state(j), s.output, memory.h[0] + j * memory.output_stride,
                memory.h[1] + j * memory.output_stride, is_over);
      if (kGates == 4)
        start_row<T>(p.c_0, p.c_n, places.state(j), s.hidden, memory.c + j * memory.hidden_stride, nullptr, is_over);
    }
    h = memory.h[0];
    h_next = memory.h[1];
    part.barrier.wait();
  }

  void take_step(int64_t step) {
    t = direction ? s.length - 1 - step : step;
    rows = places.active(t);
    last_from = direction ? (t == 0 ? 0 : rows) : places.active(t + 1);
  }

  // Appends the step's rows of x to those in memory.
  void gather_x(int64_t at) {
    for (int64_t j = 0; j < rows; j++) {
      const S* from = (const S*)p.x + places.step(t) * p.rows.x_step_stride + places.sequence(j) * p.rows.x_row_stride;
      H* to = memory.x + (at + j) * memory.input_stride;
      if constexpr (kTerms<O> > 1) {
        memcpy(to, from, s.input * sizeof(S));
        if (memory.input_stride > s.input) to[s.input] = H{};
      } else {
        for (int64_t i = 0; i < s.input; i += lanes) store_n(to + i, load_n(from + i, s.input - i), s.input - i);
      }
    }
  }

  // Asks for what `finish` will write of sequence j in this panel, and for the panel's share of the next step's x:
  // pieces too short and too far apart for the processor to foresee them.
  void ask_for(int64_t panel, int64_t j) const {
    const int64_t unit = panel * Panels::units, count = min_of(Panels::units, s.hidden - unit);
    auto to_write = [&](const auto* at) {
      for (int64_t e = 0; e < count; e += lanes) __builtin_prefetch(at + e, 1);
    };
    if (!s.has_projection) to_write((S*)p.y + places.y(t, j) * s.output + unit);
    if (kGates == 4 && p.cells) to_write((T*)p.cells + places.kept(t, j) * s.hidden + unit);
    if (kGates > 1 && p.gates)
      for (int i = 0; i < kSlots; i++) to_write((T*)p.gates + (places.kept(t, j) * kSlots + i) * s.hidden + unit);
    const int64_t t_next = direction ? t - 1 : t + 1;
    if (memory.ahead > 1 || j >= places.active(t_next)) return;
    const int64_t share = round_up(ceil_div(s.input, panels.count), kLine<S>), first = panel * share;
    if (first < s.input)
      prefetch_far(
          (const S*)p.x + places.step(t_next) * p.rows.x_step_stride + places.sequence(j) * p.rows.x_row_stride + first,
          min_of(share, s.input - first));
  }

  void multiply_x(int64_t panel, int64_t count, T* strip) {
    const T* bias = panels.bias(direction, panel);
    for (int64_t j = 0; j < count; j++) memcpy(strip + j * kStripRow<T>, bias, kStripRow<T> * sizeof(T));
    product<O, vectors>(memory.x, memory.input_stride, count, s.input, panels.x(direction, panel), strip, 2);
  }

  // A vector of units of y, or of what is still to be projected.
  void put_h(int64_t j, int64_t unit, V value, int64_t count) {
    value = rounded<S>(value);
    put_factors<O>(h_next + j * memory.output_stride + unit, value, count);
    store_n((S*)p.y + places.y(t, j) * s.output + unit, value, count);
    if (j >= last_from) store_n((S*)p.h_n + places.state(j) * s.output + unit, value, count);
  }

  void finish(int64_t panel, const T* strip) {
    for (int64_t j = 0; j < rows; j++, strip += kStripRow<T>) {
      const int64_t unit = panel * Panels::units, count = s.hidden - unit;
      V v[kSlots];
      for (int i = 0; i < kSlots; i++) v[i] = load(strip + i * lanes);
      if constexpr (kGates == 1) {
        for (int i = 0; i < kSlots && i * lanes < count; i++)
          put_h(j, unit + i * lanes, rnn_step(s.cell, v[i]), count - i * lanes);
      } else {
        activate_gates<kGates>(v);
        V value;
        if constexpr (kGates == 4) {
          T* at = memory.c + j * memory.hidden_stride + unit;
          V c = load(at);
          value = lstm_step(v, c);
          store(at, c);
          if (p.cells) store_n((T*)p.cells + places.kept(t, j) * s.hidden + unit, c, count);
          if (j >= last_from) store_n((S*)p.c_n + places.state(j) * s.hidden + unit, c, count);
        } else {
          value = gru_step(v, load(h + j * memory.output_stride + unit));
        }
        if (p.gates)
          for (int i = 0; i < kSlots; i++)
            store_n((T*)p.gates + (places.kept(t, j) * kSlots + i) * s.hidden + unit, v[i], count);
        if (s.has_projection)
          put_factors<O>(memory.unprojected + j * memory.hidden_stride + unit, value, count);
        else
          put_h(j, unit, value, count);
      }
    }
  }

  // Panels of y from all of the cell's output.
  void project() {
    part.barrier.wait();
    for (int64_t panel = part.begin(panels.out_count); panel < part.end(panels.out_count); panel++) {
      T* strip = memory.strips;
      memset(strip, 0, rows * kStripRow<T> * sizeof(T));
      product<O, kSlots>(memory.unprojected, memory.hidden_stride, rows, s.hidden, panels.out(direction, panel), strip,
                         3);
      for (int64_t j = 0; j < rows; j++)
        for (int i = 0; i < kSlots; i++) {
          const int64_t unit = panel * kStripRow<T> + i * lanes;
          if (unit < s.output) put_h(j, unit, load(strip + j * kStripRow<T> + i * lanes), s.output - unit);
        }
    }
  }

  // What lies after the end of a sequence in a padded batch.
  void clear() {
    for (int64_t j = rows; j < part.rows && part.slice == 0; j++) {
      memset((S*)p.y + places.y(t, j) * s.output, 0, s.output * sizeof(S));
      if (p.cells) memset((T*)p.cells + places.kept(t, j) * s.hidden, 0, s.hidden * sizeof(T));
    }
  }

  void run() {
    const int64_t begin = part.begin(panels.count), end = part.end(panels.count);
    const int64_t capacity = memory.ahead * part.rows * kStripRow<T>;  // of a panel's strip
    const bool is_ahead = memory.ahead > 1;
    start();
    for (int64_t first = 0; first < s.length; first += memory.ahead) {
      const int64_t last = min_of(s.length, first + memory.ahead);
      int64_t count = 0;
      for (int64_t step = first; step < last; step++) {
        take_step(step);
        gather_x(count);
        count += rows;
      }
      for (int64_t panel = begin; panel < end && is_ahead; panel++)
        multiply_x(panel, count, memory.strips + (panel - begin) * capacity);
      int64_t at = 0;
      for (int64_t step = first; step < last; step++) {
        take_step(step);
        for (int64_t panel = begin; panel < end; panel++) {
          T* strip = memory.strips + (is_ahead ? (panel - begin) * capacity + at * kStripRow<T> : 0);
          if (!is_ahead) multiply_x(panel, rows, strip);
          product<O, vectors>(h, memory.output_stride, rows, s.output, panels.h(direction, panel), strip, 3,
                              [&](int64_t i) {
                                for (int64_t j = 2 * i; j < min_of(rows, 2 * i + 2); j++) ask_for(panel, j);
                              });
          finish(panel, strip);
        }
        if (s.has_projection) project();
        if (!p.rows.is_packed) clear();
        part.barrier.wait();
        H* before = h;
        h = h_next;
        h_next = before;
        at += rows;
      }
    }
  }
};

template <class S, int kGates>
void fwd_layer(const RnnFwd& p, int threads) {
  typedef Operand<S> T;
  Carver memory = {(char*)p.workspace, 0};
  Arrival* arrivals = memory.take<Arrival>(threads);
  run_team(p.shape, threads, arrivals, [&](int64_t direction, Part& part, const Plan& plan) {
    Carver own = memory;
    const FwdMemory<T> mine(own, p.shape, plan, FwdPanels<T, kGates>::units, part);
    FwdThread<S, kGates> thread = {
        p, p.shape, part, direction, {p.shape, p.rows, part, direction}, {p.shape, p.panels}, mine, 0, 0, 0, 0, 0};
    thread.run();
  });
}

}  // namespace

void fwd(const RnnFwd& p, int num_threads) {
  for_dtype(p.shape.dtype, [&](auto storage) {
    for_gates(p.shape.cell, [&](auto gates) { fwd_layer<decltype(storage), decltype(gates)::count>(p, num_threads); });
  });
}

}  // namespace PF_ISA::recurrent
