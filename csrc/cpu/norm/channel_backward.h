// BatchNorm, GroupNorm and InstanceNorm backward: of each channel the sums of dz and of dz (x - mean), dz the gradient
// before the activation; then one pass for dx. Where the statistics were not of x the first pass writes dx. A unit is
// kept in the cache as in the forward.
#pragma once
#include "channel_forward.h"

namespace PF_ISA::norm {

namespace {

struct Sums {
  double dz, product;  // product: of dz and x - mean
};

// What the first pass writes; null: not wanted.
template <class S>
struct Written {
  S *dresidual, *dx;
  Written from(int64_t j) const { return {dresidual ? dresidual + j : nullptr, dx ? dx + j : nullptr}; }
};

// How dz comes of dy, which is dz already where there is no activation.
template <class Act>
struct Derivative {
  Act act;
  bool saves_output;

  template <class S, class V, class Count>
  PF_MEMBER V of(V dy, V centred, V scale, V offset, const S* residual, Count count) const {
    V z = fma(centred, scale, offset);
    if (residual) z += load_part(residual, count);
    return act.backward(dy, saves_output ? act.forward(z) : z);
  }
};

template <class Act, class S, class D>
void reduce_plane(const Derivative<Act> derivative, const D* dy, const S* x, const S* residual, int64_t cols,
                  const Affine<Same<Acc<S>>>& affine, const Written<S>& written, Sums* sums) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const T mean = affine.mean.value;
  const V scale = splat<V>(affine.scale.value), offset = splat<V>(affine.offset.value);
  for (int64_t j0 = 0; j0 < cols; j0 += kNormChunk) {
    V dzs[kNormChains] = {}, products[kNormChains] = {};
    for_columns<T, kNormChains>(j0, min_of(cols, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
      const V centred = load_part(x + j, count, mean) - mean;
      const V dz =
          derivative.of(load_part(dy + j, count), centred, scale, offset, residual ? residual + j : residual, count);
      dzs[chain] += dz;
      products[chain] = fma(dz, centred, products[chain]);
      if (written.dresidual) store_part(written.dresidual + j, dz, count);
      if (written.dx) store_part(written.dx + j, dz * scale, count);
    });
    sums->dz += sum_chains(dzs), sums->product += sum_chains(products);
  }
}

// The same of kRows rows of channels, added to each channel's sums.
template <int kRows, class Act, class S, class D>
PF_INLINE void reduce_columns(const Derivative<Act> derivative, const D* dy, int64_t dy_stride, const S* x,
                              const S* residual, int64_t stride, int64_t cols, const Affine<Each<Acc<S>>>& affine,
                              const Written<S>& written, Acc<S>* sum, Acc<S>* product, bool is_first) {
  typedef Vec<Acc<S>> V;
  for_columns<Acc<S>, 1>(0, cols, [&](int64_t j, auto count, int) {
    const V mean = load(affine.mean.values + j), scale = load(affine.scale.values + j);
    const V offset = load(affine.offset.values + j);
    V dzs = {}, products = {};
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      const int64_t at = r * stride + j;
      if (kRows > 1) ask_ahead(x + at), ask_ahead(dy + r * dy_stride + j);
      const V centred = load_part(x + at, count) - mean;
      const V dz = derivative.of(load_part(dy + r * dy_stride + j, count), centred, scale, offset,
                                 residual ? residual + at : residual, count);
      dzs += dz;
      products = fma(dz, centred, products);
      if (written.dresidual) store_part(written.dresidual + at, dz, count);
      if (written.dx) store_part(written.dx + at, dz * scale, count);
    }
    store(sum + j, is_first ? dzs : load(sum + j) + dzs);
    store(product + j, is_first ? products : load(product + j) + products);
  });
}

// dx = (dz weight - (x - mean) along_x - along_one) rstd: without what changes the unit's mean and deviation. In this
// order no product is fused with along_one, so that the difference is exactly 0 where all of dz weight is equal.
template <class C>
struct Slopes {
  C weight, along_x, along_one, rstd;
  Slopes from(int64_t j) const { return {weight.from(j), along_x.from(j), along_one.from(j), rstd.from(j)}; }
};

template <bool kStream, class Act, class S, class D, class C>
PF_INLINE void dx_row(const Derivative<Act> derivative, const D* dy, const S* x, const S* residual, S* dx, int64_t cols,
                      const Affine<C>& affine, const Slopes<C>& slopes) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for_columns_down<T>(0, cols, [&](int64_t j, auto count) {
    const V centred = load_part(x + j, count) - C::of(affine.mean, j);
    const V dz = derivative.of(load_part(dy + j, count), centred, C::of(affine.scale, j), C::of(affine.offset, j),
                               residual ? residual + j : residual, count);
    const V orthogonal = dz * C::of(slopes.weight, j) - centred * C::of(slopes.along_x, j) - C::of(slopes.along_one, j);
    store_row<kStream>(dx + j, orthogonal * C::of(slopes.rstd, j), count);
  });
}

template <class S, bool kStream, class C>
PF_INLINE void finish_dx(const ChannelNormBwd& p, Tile<Acc<S>>& tile, int64_t at, int64_t cols, const Affine<C>& affine,
                         const Slopes<C>& slopes) {
  const S *dy = (const S*)p.dy + at, *x = (const S*)p.x + at, *none = nullptr;
  const S* residual = p.residual ? (const S*)p.residual + at : nullptr;
  S* dx = (S*)p.dx + at;
  const Derivative<NoActivation> is_dz = {};
  if (p.dresidual)  // the first pass has left dz there
    return dx_row<kStream>(is_dz, (const S*)p.dresidual + at, x, none, dx, cols, affine, slopes);
  if (for_ending(p.ending, [&](auto act) {
        const Derivative<decltype(act)> derivative = {act, p.saves_output};
        dx_row<kStream>(derivative, dy, x, residual, dx, cols, affine, slopes);
      }))
    return;
  for_pieces_down(cols, [&](int64_t j, int64_t n) {
    fill_dz<S, 1>(p, tile, dy + j, x + j, residual ? residual + j : residual, cols, n, affine.from(j));
    dx_row<kStream>(is_dz, (const Acc<S>*)tile.dz, x + j, none, dx + j, n, affine.from(j), slopes.from(j));
  });
}

template <class T>
PF_INLINE Affine<Same<T>> affine_of(const ChannelNormBwd& p, int64_t unit, int64_t channel) {
  const T factor = p.weight ? ((const T*)p.weight)[channel] : 1, moved = p.bias ? ((const T*)p.bias)[channel] : 0;
  return {{((const T*)p.mean)[unit]}, {((const T*)p.rstd)[unit] * factor}, {moved}};
}

// of_units: along_x and along_one.
template <class T>
PF_INLINE Slopes<Same<T>> slopes_of(const ChannelNormBwd& p, const double (*of_units)[2], int64_t unit,
                                    int64_t channel) {
  const T weight = p.weight ? ((const T*)p.weight)[channel] : 1;
  return {{weight}, {(T)of_units[unit][0]}, {(T)of_units[unit][1]}, {((const T*)p.rstd)[unit]}};
}

// What a unit's dx is orthogonal to, from the sums of its planes.
template <class T>
void unit_slopes(const ChannelNormBwd& p, const ChannelNormPlan& plan, int64_t unit, const Sums* planes,
                 double (*of_units)[2]) {
  Planes of = planes_of(p.shape, unit);
  if (p.shape.is_last && !p.shape.groups) of.count = 1;
  double dz = 0, product = 0, rstd = (double)((const T*)p.rstd)[unit];
  for (int64_t i = 0; i < of.count; i++) {
    const int64_t plane = of.first + i * of.step;
    const double weight = p.weight ? (double)((const T*)p.weight)[plane % p.shape.channels] : 1;
    dz += weight * planes[plane].dz, product += weight * planes[plane].product;
  }
  of_units[unit][0] = product * rstd * rstd / (double)plan.count;
  of_units[unit][1] = dz / (double)plan.count;
}

// The first pass's outputs: dx as well where nothing else changes it.
template <class S>
PF_INLINE Written<S> written_of(const ChannelNormBwd& p, int64_t at) {
  return {p.dresidual ? (S*)p.dresidual + at : nullptr, p.dx && !p.uses_input ? (S*)p.dx + at : nullptr};
}

template <class S>
void reduce_plane_at(const ChannelNormBwd& p, Tile<Acc<S>>& tile, int64_t plane, Sums* sums) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  const int64_t at = plane * s.positions, cols = s.positions, channel = plane % s.channels;
  const S *dy = (const S*)p.dy + at, *x = (const S*)p.x + at, *none = nullptr;
  const S* residual = p.residual ? (const S*)p.residual + at : nullptr;
  const Affine<Same<T>> affine = affine_of<T>(p, unit_of(s, plane / s.channels, channel), channel);
  const Written<S> written = written_of<S>(p, at);
  *sums = {0, 0};
  if (for_ending(p.ending, [&](auto act) {
        const Derivative<decltype(act)> derivative = {act, p.saves_output};
        reduce_plane(derivative, dy, x, residual, cols, affine, written, sums);
      }))
    return;
  for_pieces_down(cols, [&](int64_t j, int64_t n) {
    fill_dz<S, 1>(p, tile, dy + j, x + j, residual ? residual + j : residual, cols, n, affine);
    reduce_plane(Derivative<NoActivation>{}, (const T*)tile.dz, x + j, none, n, affine, written.from(j), sums);
  });
}

template <class S, bool kStream>
void finish_dx_plane(const ChannelNormBwd& p, const double (*of_units)[2], Tile<Acc<S>>& tile, int64_t plane) {
  const ChannelNormShape& s = p.shape;
  const int64_t channel = plane % s.channels, unit = unit_of(s, plane / s.channels, channel);
  finish_dx<S, kStream>(p, tile, plane * s.positions, s.positions, affine_of<Acc<S>>(p, unit, channel),
                        slopes_of<Acc<S>>(p, of_units, unit, channel));
}

template <class S, bool kStream>
void backward_planes(const ChannelNormBwd& p, const ChannelNormPlan& plan, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  Sums* planes = (Sums*)((char*)p.workspace + plan.sums);
  double (*of_units)[2] = (double (*)[2])((char*)p.workspace + plan.of_units);
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, s.positions));
  const bool finishes = p.dx && p.uses_input;
  const int tensors = p.residual ? 5 : 3;
  if (finishes && is_cached(s, plan, tensors)) {
    // dz waits in dx, in the cache, where it would take longer to compute it again; half types would round it.
    ChannelNormBwd of_unit = p;
    const bool is_dear = p.ending == Ending::silu || p.ending == Ending::table;
    if (is_dear && sizeof(S) != 2 && !p.dresidual) of_unit.dresidual = p.dx;
    parallel_ranges(plan.units, max_of(1, kElementwiseGrain / plan.count), threads, [&](int64_t begin, int64_t end) {
      Tile<T> tile;
      for_runs(s, plan, tensors, begin, end, [&](int64_t first, int64_t last) {
        for_planes(s, first, last, [&](int64_t plane) { reduce_plane_at<S>(of_unit, tile, plane, planes + plane); });
        for (int64_t unit = first; unit < last; unit++) unit_slopes<T>(p, plan, unit, planes, of_units);
        for_planes_down(s, first, last,
                        [&](int64_t plane) { finish_dx_plane<S, kStream>(of_unit, of_units, tile, plane); });
      });
      if (kStream) stream_fence();
    });
    return;
  }
  parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for (int64_t plane = begin; plane < end; plane++) reduce_plane_at<S>(p, tile, plane, planes + plane);
  });
  if (!finishes) return;
  for (int64_t unit = 0; unit < plan.units; unit++) unit_slopes<T>(p, plan, unit, planes, of_units);
  parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for (int64_t plane = end - 1; plane >= begin; plane--) finish_dx_plane<S, kStream>(p, of_units, tile, plane);
    if (kStream) stream_fence();
  });
}

template <class S, int kRows>
void reduce_rows(const ChannelNormBwd& p, Tile<Acc<S>>& tile, int64_t at, const Affine<Each<Acc<S>>>& affine,
                 Acc<S>* sum, Acc<S>* product, bool is_first) {
  const int64_t channels = p.shape.channels;
  const S *dy = (const S*)p.dy + at, *x = (const S*)p.x + at, *none = nullptr;
  const S* residual = p.residual ? (const S*)p.residual + at : nullptr;
  const Written<S> written = written_of<S>(p, at);
  if (for_ending(p.ending, [&](auto act) {
        const Derivative<decltype(act)> derivative = {act, p.saves_output};
        reduce_columns<kRows>(derivative, dy, channels, x, residual, channels, channels, affine, written, sum, product,
                              is_first);
      }))
    return;
  for_pieces_down(channels, [&](int64_t j, int64_t n) {
    fill_dz<S, kRows>(p, tile, dy + j, x + j, residual ? residual + j : residual, channels, n, affine.from(j));
    reduce_columns<kRows>(Derivative<NoActivation>{}, (const Acc<S>*)tile.dz, kTileStride, x + j, none, channels, n,
                          affine.from(j), written.from(j), sum + j, product + j, is_first);
  });
}

template <class S, bool kStream>
void backward_rows(const ChannelNormBwd& p, const ChannelNormPlan& plan, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  Sums* planes = (Sums*)((char*)p.workspace + plan.sums);
  double (*of_units)[2] = (double (*)[2])((char*)p.workspace + plan.of_units);
  T *tables = (T*)((char*)p.workspace + plan.tables), *partial = (T*)((char*)p.workspace + plan.partial);
  const int64_t blocks = plan.samples * plan.blocks, channels = s.channels, padded = plan.padded;
  const int64_t grain = max_of(1, kElementwiseGrain / (plan.block_rows * channels));
  const bool writes = p.dresidual || (p.dx && !p.uses_input);
  auto table_of = [&](int64_t sample, int which) { return tables + (sample * kChannelTables + which) * padded; };
  auto affine_at = [&](int64_t sample) {
    return Affine<Each<T>>{{table_of(sample, 0)}, {table_of(sample, 1)}, {table_of(sample, 2)}};
  };
  for (int64_t sample = 0; sample < plan.samples; sample++)
    for (int64_t c = 0; c < channels; c++) {
      const Affine<Same<T>> affine = affine_of<T>(p, unit_of(s, sample, c), c);
      table_of(sample, 0)[c] = affine.mean.value, table_of(sample, 1)[c] = affine.scale.value;
      table_of(sample, 2)[c] = affine.offset.value;
    }
  parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for_blocks_down(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t block) {
      const Affine<Each<T>> affine = affine_at(sample);
      T *sum = partial + block * 2 * padded, *product = sum + padded;
      int64_t row = 0;
      const int64_t at = (sample * plan.rows + first) * channels;
      // Rows that are written as well go one by one: see normalise_row.
      for (; !writes && row + kTileRows <= rows; row += kTileRows)
        reduce_rows<S, kTileRows>(p, tile, at + row * channels, affine, sum, product, row == 0);
      for (; row < rows; row++) reduce_rows<S, 1>(p, tile, at + row * channels, affine, sum, product, row == 0);
    });
  });
  const bool finishes = p.dx && p.uses_input;
  auto fill_slopes = [&](int64_t sample, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      const Slopes<Same<T>> slopes = slopes_of<T>(p, of_units, unit_of(s, sample, c), c);
      table_of(sample, 3)[c] = slopes.weight.value, table_of(sample, 4)[c] = slopes.along_x.value;
      table_of(sample, 5)[c] = slopes.along_one.value, table_of(sample, 6)[c] = slopes.rstd.value;
    }
  };
  const int64_t combine_grain = max_of(16, kElementwiseGrain / plan.blocks / 16 * 16);
  parallel_ranges(plan.samples * channels, combine_grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at++) planes[at] = {0, 0};
    for (int64_t sample = begin / channels; sample * channels < end; sample++) {
      const int64_t first = max_of(begin - sample * channels, 0), last = min_of(end - sample * channels, channels);
      for (int64_t block = sample * plan.blocks; block < (sample + 1) * plan.blocks; block++) {
        const T *sum = partial + block * 2 * padded, *product = sum + padded;
        for (int64_t c = first; c < last; c++)
          planes[sample * channels + c].dz += (double)sum[c],
              planes[sample * channels + c].product += (double)product[c];
      }
      if (s.groups || !finishes) continue;  // of groups the channels may be of other threads
      for (int64_t c = first; c < last; c++) unit_slopes<T>(p, plan, c, planes, of_units);
      fill_slopes(sample, first, last);
    }
  });
  if (!finishes) return;
  if (s.groups) {
    for (int64_t unit = 0; unit < plan.units; unit++) unit_slopes<T>(p, plan, unit, planes, of_units);
    for (int64_t sample = 0; sample < plan.samples; sample++) fill_slopes(sample, 0, channels);
  }
  parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for_blocks_down(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t) {
      const Affine<Each<T>> affine = affine_at(sample);
      const Slopes<Each<T>> slopes = {
          {table_of(sample, 3)}, {table_of(sample, 4)}, {table_of(sample, 5)}, {table_of(sample, 6)}};
      const int64_t at = (sample * plan.rows + first) * channels;
      for (int64_t row = rows - 1; row >= 0; row--)
        finish_dx<S, kStream>(p, tile, at + row * channels, channels, affine, slopes);
    });
    if (kStream) stream_fence();
  });
}

}  // namespace

void channel_norm_bwd(const ChannelNormBwd& p, int num_threads) {
  const ChannelNormPlan plan = channel_norm_plan(p.shape, kChannelNormRoom);
  const ChannelNormShape& s = p.shape;
  for_dtype(s.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> T;
    auto run = [&](auto streams) {
      constexpr bool kStream = decltype(streams)::value;
      for_rounds<S>(p, plan, p.residual ? 5 : 3, [&](const ChannelNormBwd& part, const ChannelNormPlan& plan) {
        s.is_last ? backward_rows<S, kStream>(part, plan, num_threads)
                  : backward_planes<S, kStream>(part, plan, num_threads);
      });
    };
    const int64_t bytes = s.batch * s.channels * s.positions * (int64_t)sizeof(S) * 3;
    const bool is_aligned =
        (s.is_last ? s.channels : s.positions) % kLanes<T> == 0 && (uintptr_t)p.dx % PF_VECTOR_BYTES == 0;
    const bool streams = sizeof(S) == 4 && bytes >= kStreamBytes && is_aligned;
    if constexpr (sizeof(S) == 4)
      if (streams) run(Constant<true>{});
    if (!streams) run(Constant<false>{});
    if (!p.dweight && !p.dbias) return;
    const Sums* planes = (const Sums*)((char*)p.workspace + plan.sums);
    for (int64_t c = 0; c < s.channels; c++) {
      double dweight = 0, dbias = 0;
      for (int64_t sample = 0; sample < plan.samples; sample++) {
        const Sums& sums = planes[sample * s.channels + c];
        dweight += sums.product * (double)((const T*)p.rstd)[unit_of(s, sample, c)];
        dbias += sums.dz;
      }
      if (p.dweight) ((T*)p.dweight)[c] = (T)dweight;
      if (p.dbias) ((T*)p.dbias)[c] = (T)dbias;
    }
  });
}

}  // namespace PF_ISA::norm
