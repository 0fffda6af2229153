// y = activation(gate) value, its backward, and the backward of that, in one pass each.
#pragma once
#include "tile.h"

namespace PF_ISA::pointwise {

namespace {

// A tile of a matrix with adjacent columns, whose elements are numbered row by row; its parts in one row each are runs.
struct Rows {
  int64_t row_stride, cols;

  template <class Body>
  PF_MEMBER void for_runs(int64_t first, int64_t tile, Body body) const {
    int64_t row = first / cols, column = first % cols;
    for (int64_t at = 0, count; at < tile; at += count, row++, column = 0) {
      count = min_of(cols - column, tile - at);
      body(at, row * row_stride + column, count);
    }
  }
  bool is_run(int64_t first, int64_t count) const { return first % cols + count <= cols; }
  int64_t offset(int64_t first) const { return first / cols * row_stride + first % cols; }

  // As `from`, `place` and `deliver` of tile.h.
  template <class S>
  const Acc<S>* from(const void* x, int64_t first, int64_t count, Tile<Acc<S>>& tile) const {
    if (is_run(first, count)) return pointwise::from((const S*)x + offset(first), count, tile);
    for_runs(first, count,
             [&](int64_t at, int64_t where, int64_t n) { load_tile((const S*)x + where, n, tile.at + at); });
    return tile.at;
  }
  template <class S>
  Acc<S>* place(void* y, int64_t first, int64_t count, Tile<Acc<S>>& tile) const {
    return is_run(first, count) ? pointwise::place((S*)y + offset(first), count, tile) : tile.at;
  }
  template <class S>
  void deliver(void* y, int64_t first, int64_t count, const Acc<S>* z) const {
    if (is_run(first, count)) return pointwise::deliver((S*)y + offset(first), count, z);
    for_runs(first, count, [&](int64_t at, int64_t where, int64_t n) { store_tile((S*)y + where, n, z + at); });
  }
};

template <class A>
__attribute__((noinline)) void gate_fwd(const Activation& activation, int64_t count, const A* gate, const A* value,
                                        A* y) {
  for_optional_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < count; i += kLanes<A>) store(y + i, act.forward(load(gate + i)) * load(value + i));
  });
}

template <class A>
__attribute__((noinline)) void gate_bwd(const Activation& activation, int64_t count, const A* dy, const A* gate,
                                        const A* value, A* dgate, A* dvalue) {
  for_optional_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const Vec<A> d = load(dy + i), x = load(gate + i), y = act.forward(x);
      const Vec<A> dx = act.backward(d * load(value + i), decltype(act)::kFromOutput ? y : x);
      store(dgate + i, dx);
      store(dvalue + i, d * y);
    }
  });
}

// dgate = dy value act'(gate), dvalue = dy act(gate); of what arrives at them, ddgate and ddvalue, or 0 at one of them.
template <class A>
__attribute__((noinline)) void gate_bwd_bwd(const Activation& activation, int64_t count, const A* ddgate,
                                            const A* ddvalue, bool has_ddgate, const A* dy, const A* gate,
                                            const A* value, A* ddy, A* dgate, A* dvalue) {
  typedef Vec<A> V;
  for_optional_activation(activation, [&](auto act) {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      const V d = load(dy + i), x = load(gate + i), v = load(value + i), y = act.forward(x);
      const V saved = decltype(act)::kFromOutput ? y : x, g = load(ddgate + i), of_value = load(ddvalue + i);
      const V sloped = act.backward(g, saved);
      V of_gate = act.backward(of_value * d, saved);
      if constexpr (decltype(act)::kIsCurved) {
        V bent = act.double_backward(g, d * v, saved);
        of_gate += decltype(act)::kFromOutput ? act.backward(bent, saved) : bent;
      }
      store(ddy + i, has_ddgate ? fma(sloped, v, of_value * y) : of_value * y);  // an infinite v times 0 is no number
      store(dgate + i, of_gate);
      store(dvalue + i, sloped * d);
    }
  });
}

}  // namespace

void gated_fwd(const GatedFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Rows of_gate{p.gate_row_stride, p.cols}, of_value{p.value_row_stride, p.cols};
    parallel_tiles(p.rows * p.cols, num_threads, [&](int64_t first, int64_t count) {
      Tile<Acc<S>> gate, value, out;
      S* y = (S*)p.y + first;
      auto z = place(y, count, out);
      gate_fwd(p.activation, count, of_gate.from<S>(p.gate, first, count, gate),
               of_value.from<S>(p.value, first, count, value), z);
      deliver(y, count, z);
    });
  });
}

void gated_bwd(const GatedBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Rows of_gate{p.gate_row_stride, p.cols}, of_value{p.value_row_stride, p.cols};
    const Rows of_dgate{p.dgate_row_stride, p.cols}, of_dvalue{p.dvalue_row_stride, p.cols};
    parallel_tiles(p.rows * p.cols, num_threads, [&](int64_t first, int64_t count) {
      Tile<Acc<S>> dy, gate, value, dgate_tile, dvalue_tile;
      auto dgate = of_dgate.place<S>(p.dgate, first, count, dgate_tile);
      auto dvalue = of_dvalue.place<S>(p.dvalue, first, count, dvalue_tile);
      gate_bwd(p.activation, count, from((const S*)p.dy + first, count, dy),
               of_gate.from<S>(p.gate, first, count, gate), of_value.from<S>(p.value, first, count, value), dgate,
               dvalue);
      of_dgate.deliver<S>(p.dgate, first, count, dgate);
      of_dvalue.deliver<S>(p.dvalue, first, count, dvalue);
    });
  });
}

void gated_bwd_bwd(const GatedBwdBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Rows of_ddgate{p.ddgate_row_stride, p.cols}, of_ddvalue{p.ddvalue_row_stride, p.cols};
    const Rows of_gate{p.gate_row_stride, p.cols}, of_value{p.value_row_stride, p.cols};
    const Rows of_dgate{p.dgate_row_stride, p.cols}, of_dvalue{p.dvalue_row_stride, p.cols};
    parallel_tiles(p.rows * p.cols, num_threads, [&](int64_t first, int64_t count) {
      Tile<Acc<S>> dd_tile[2], in_tile[3], out_tile[3];
      auto arriving = [&](const void* dd, const Rows& of, Tile<Acc<S>>& tile) {
        if (dd) return of.from<S>(dd, first, count, tile);
        tile.fill(0);
        return (const Acc<S>*)tile.at;
      };
      S* ddy = (S*)p.ddy + first;
      auto ddy_at = place(ddy, count, out_tile[0]);
      auto dgate = of_dgate.place<S>(p.dgate, first, count, out_tile[1]);
      auto dvalue = of_dvalue.place<S>(p.dvalue, first, count, out_tile[2]);
      gate_bwd_bwd(p.activation, count, arriving(p.ddgate, of_ddgate, dd_tile[0]),
                   arriving(p.ddvalue, of_ddvalue, dd_tile[1]), p.ddgate != nullptr,
                   from((const S*)p.dy + first, count, in_tile[0]), of_gate.from<S>(p.gate, first, count, in_tile[1]),
                   of_value.from<S>(p.value, first, count, in_tile[2]), ddy_at, dgate, dvalue);
      deliver(ddy, count, ddy_at);
      of_dgate.deliver<S>(p.dgate, first, count, dgate);
      of_dvalue.deliver<S>(p.dvalue, first, count, dvalue);
    });
  });
}

}  // namespace PF_ISA::pointwise
