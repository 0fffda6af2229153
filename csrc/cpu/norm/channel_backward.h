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

// The same of rows of channels, added to each channel's sums; kIsOne: of one row, vector by vector.
template <bool kIsOne, class Act, class S, class D>
PF_INLINE void reduce_columns(const Derivative<Act> derivative, const D* dy, int64_t dy_stride, const S* x,
                              const S* residual, int64_t stride, int64_t rows, int64_t cols,
                              const Affine<Each<Acc<S>>>& affine, const Written<S>& written, Acc<S>* sum,
                              Acc<S>* product, bool is_first) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const auto reduce = [&](int64_t j0, auto count, auto strip) {
    constexpr int vectors = decltype(strip)::vectors;
    V mean[vectors], scale[vectors], offset[vectors], dzs[vectors] = {}, products[vectors] = {};
    load_strip<vectors>(affine.mean, j0, mean), load_strip<vectors>(affine.scale, j0, scale);
    load_strip<vectors>(affine.offset, j0, offset);
    if (!is_first) load_strip<vectors>(Each<T>{sum}, j0, dzs), load_strip<vectors>(Each<T>{product}, j0, products);
    const int64_t next_x = next_strip<T>(j0, rows, stride, cols), next_dy = next_strip<T>(j0, rows, dy_stride, cols);
    const auto add = [&](int64_t row, auto group) {
      PF_UNROLL
      for (int v = 0; v < vectors; v++) {
        V of_rows = {}, of_products = {};
        PF_UNROLL
        for (int r = 0; r < decltype(group)::vectors; r++) {
          const int64_t at = (row + r) * stride + j0 + v * kLanes<T>;
          const D* dy_at = dy + (row + r) * dy_stride + j0 + v * kLanes<T>;
          if (!kIsOne) __builtin_prefetch(x + at + next_x, 0, 2), __builtin_prefetch(dy_at + next_dy, 0, 2);
          const V centred = load_part(x + at, count) - mean[v];
          const V dz = derivative.of(load_part(dy_at, count), centred, scale[v], offset[v],
                                     residual ? residual + at : residual, count);
          of_rows += dz;
          of_products = fma(dz, centred, of_products);
          if (written.dresidual) store_part(written.dresidual + at, dz, count);
          if (written.dx) store_part(written.dx + at, dz * scale[v], count);
        }
        dzs[v] += of_rows, products[v] += of_products;
      }
    };
    if constexpr (kIsOne)
      add(0, Strip<1>{});
    else
      for_row_groups(rows, add);
    PF_UNROLL
    for (int v = 0; v < vectors; v++)
      store(sum + j0 + v * kLanes<T>, dzs[v]), store(product + j0 + v * kLanes<T>, products[v]);
  };
  if constexpr (kIsOne)
    for_columns<T, 1>(0, cols, [&](int64_t j, auto count, int) { reduce(j, count, Strip<1>{}); });
  else
    for_strips<T>(cols, reduce);
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

// The same of rows that are `cols` apart.
template <bool kStream, class Act, class S, class D, class C>
PF_INLINE void dx_rows(const Derivative<Act> derivative, const D* dy, const S* x, const S* residual, S* dx,
                       int64_t rows, int64_t cols, const Affine<C>& affine, const Slopes<C>& slopes) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  if (rows == 1) return dx_row<kStream>(derivative, dy, x, residual, dx, cols, affine, slopes);
  for_strips_down<T>(cols, [&](int64_t j0, auto count, auto strip) {
    constexpr int vectors = decltype(strip)::vectors;
    V mean[vectors], scale[vectors], offset[vectors];
    V weight[vectors], along_x[vectors], along_one[vectors], rstd[vectors];
    load_strip<vectors>(affine.mean, j0, mean), load_strip<vectors>(affine.scale, j0, scale);
    load_strip<vectors>(affine.offset, j0, offset), load_strip<vectors>(slopes.weight, j0, weight);
    load_strip<vectors>(slopes.along_x, j0, along_x), load_strip<vectors>(slopes.along_one, j0, along_one);
    load_strip<vectors>(slopes.rstd, j0, rstd);
    for (int64_t row = rows - 1; row >= 0; row--) {
      PF_UNROLL
      for (int v = vectors - 1; v >= 0; v--) {
        const int64_t at = row * cols + j0 + v * kLanes<T>;
        const V centred = load_part(x + at, count) - mean[v];
        const V dz = derivative.of(load_part(dy + at, count), centred, scale[v], offset[v],
                                   residual ? residual + at : residual, count);
        const V orthogonal = dz * weight[v] - centred * along_x[v] - along_one[v];
        store_row<kStream>(dx + at, orthogonal * rstd[v], count);
      }
    }
  });
}

template <class S, bool kStream, class C>
PF_INLINE void finish_dx(const ChannelNormBwd& p, Tile<Acc<S>>& tile, int64_t at, int64_t rows, int64_t cols,
                         const Affine<C>& affine, const Slopes<C>& slopes) {
  const S *dy = (const S*)p.dy + at, *x = (const S*)p.x + at, *none = nullptr;
  const S* residual = p.residual ? (const S*)p.residual + at : nullptr;
  S* dx = (S*)p.dx + at;
  const Derivative<NoActivation> is_dz = {};
  if (p.dresidual)  // the first pass has left dz there
    return dx_rows<kStream>(is_dz, (const S*)p.dresidual + at, x, none, dx, rows, cols, affine, slopes);
  if (for_ending(p.ending, [&](auto act) {
        const Derivative<decltype(act)> derivative = {act, p.saves_output};
        dx_rows<kStream>(derivative, dy, x, residual, dx, rows, cols, affine, slopes);
      }))
    return;
  for (int64_t row = rows - 1; row >= 0; row--)
    for_pieces_down(cols, [&](int64_t j, int64_t n) {
      const int64_t from = row * cols + j;
      fill_dz<S, 1>(p, tile, dy + from, x + from, residual ? residual + from : residual, cols, n, affine.from(j));
      dx_row<kStream>(is_dz, (const Acc<S>*)tile.dz, x + from, none, dx + from, n, affine.from(j), slopes.from(j));
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
  const int64_t channel = of.first % p.shape.channels;
  for (int64_t i = 0; i < of.count; i++) {
    const int64_t plane = of.first + i * of.step;
    const double weight = p.weight ? (double)((const T*)p.weight)[p.shape.groups ? channel + i : channel] : 1;
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

PF_INLINE bool is_dear(const ChannelNormBwd& p) { return p.ending == Ending::silu || p.ending == Ending::table; }

// Lets dz wait in dx, in a cache, where it would take longer to compute it again; half types would round it.
template <class S>
PF_INLINE void keep_dz(ChannelNormBwd* p) {
  if (is_dear(*p) && sizeof(S) != 2 && !p->dresidual) p->dresidual = p->dx;
}

template <class S>
void reduce_plane_at(const ChannelNormBwd& p, Tile<Acc<S>>& tile, const Place& place, Sums* planes) {
  typedef Acc<S> T;
  const int64_t cols = p.shape.positions, at = place.plane * cols;
  Sums* sums = planes + place.plane;
  const S *dy = (const S*)p.dy + at, *x = (const S*)p.x + at, *none = nullptr;
  const S* residual = p.residual ? (const S*)p.residual + at : nullptr;
  const Affine<Same<T>> affine = affine_of<T>(p, place.unit, place.channel);
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
void finish_dx_plane(const ChannelNormBwd& p, const double (*of_units)[2], Tile<Acc<S>>& tile, const Place& at) {
  const int64_t cols = p.shape.positions;
  finish_dx<S, kStream>(p, tile, at.plane * cols, 1, cols, affine_of<Acc<S>>(p, at.unit, at.channel),
                        slopes_of<Acc<S>>(p, of_units, at.unit, at.channel));
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
    ChannelNormBwd of_unit = p;
    keep_dz<S>(&of_unit);
    parallel_ranges(plan.units, max_of(1, kElementwiseGrain / plan.count), threads, [&](int64_t begin, int64_t end) {
      Tile<T> tile;
      for_runs(s, plan, tensors, begin, end, [&](int64_t first, int64_t last) {
        for_planes(s, first, last, [&](const Place& at) { reduce_plane_at<S>(of_unit, tile, at, planes); });
        for (int64_t unit = first; unit < last; unit++) unit_slopes<T>(p, plan, unit, planes, of_units);
        for_planes_down(s, first, last,
                        [&](const Place& at) { finish_dx_plane<S, kStream>(of_unit, of_units, tile, at); });
      });
      if (kStream) stream_fence();
    });
    return;
  }
  parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for (int64_t plane = begin; plane < end; plane++) reduce_plane_at<S>(p, tile, place_of(s, plane), planes);
  });
  if (!finishes) return;
  for (int64_t unit = 0; unit < plan.units; unit++) unit_slopes<T>(p, plan, unit, planes, of_units);
  parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for (int64_t plane = end - 1; plane >= begin; plane--)
      finish_dx_plane<S, kStream>(p, of_units, tile, place_of(s, plane));
    if (kStream) stream_fence();
  });
}

// The first pass over rows of channels, from element `at` on.
template <class S>
void reduce_rows(const ChannelNormBwd& p, Tile<Acc<S>>& tile, int64_t at, int64_t rows, int64_t together,
                 const Affine<Each<Acc<S>>>& affine, Acc<S>* sum, Acc<S>* product) {
  const int64_t channels = p.shape.channels;
  const S *dy = (const S*)p.dy + at, *x = (const S*)p.x + at, *none = nullptr;
  const S* residual = p.residual ? (const S*)p.residual + at : nullptr;
  const Written<S> written = written_of<S>(p, at);
  if (for_ending(p.ending, [&](auto act) {
        const Derivative<decltype(act)> derivative = {act, p.saves_output};
        // Rows that are written as well go one by one, and vector by vector, but for what takes long to compute: more
        // of them took twice as long where they came from memory.
        const bool writes = written.dresidual || written.dx;
        const int64_t step = !writes ? rows : is_dear(p) ? together : 1;
        const auto reduce = [&](auto is_one) {
          for (int64_t row = 0; row < rows; row += step) {
            const int64_t from = row * channels;
            reduce_columns<decltype(is_one)::value>(
                derivative, dy + from, channels, x + from, residual ? residual + from : residual, channels,
                min_of(step, rows - row), channels, affine, written.from(from), sum, product, row == 0);
          }
        };
        step == 1 ? reduce(Constant<true>{}) : reduce(Constant<false>{});
      }))
    return;
  for_row_groups(rows, [&](int64_t row, auto group) {
    constexpr int kRows = decltype(group)::vectors;
    for_pieces_down(channels, [&](int64_t j, int64_t n) {
      const int64_t from = row * channels + j;
      fill_dz<S, kRows>(p, tile, dy + from, x + from, residual ? residual + from : residual, channels, n,
                        affine.from(j));
      reduce_columns<kRows == 1>(Derivative<NoActivation>{}, (const Acc<S>*)tile.dz, kTileStride, x + from, none,
                                 channels, kRows, n, affine.from(j), written.from(from), sum + j, product + j,
                                 row == 0);
    });
  });
}

template <class S, bool kStream>
void backward_rows(const ChannelNormBwd& problem, const ChannelNormPlan& plan, int64_t bytes, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = problem.shape;
  const bool finishes = problem.dx && problem.uses_input;
  const int64_t together = rows_together<T>(s.channels, bytes);
  ChannelNormBwd p = problem;
  if (finishes && bytes < kTogetherBytes) keep_dz<S>(&p);
  Sums* planes = (Sums*)((char*)p.workspace + plan.sums);
  double (*of_units)[2] = (double (*)[2])((char*)p.workspace + plan.of_units);
  T *tables = (T*)((char*)p.workspace + plan.tables), *partial = (T*)((char*)p.workspace + plan.partial);
  const int64_t blocks = plan.samples * plan.blocks, channels = s.channels, padded = plan.padded;
  const int64_t grain = max_of(1, kElementwiseGrain / (plan.block_rows * channels));
  auto table_of = [&](int64_t sample, int which) { return tables + (sample * kChannelTables + which) * padded; };
  auto affine_at = [&](int64_t sample) {
    return Affine<Each<T>>{{table_of(sample, 0)}, {table_of(sample, 1)}, {table_of(sample, 2)}};
  };
  for (int64_t sample = 0; sample < plan.samples; sample++)
    for_channels(s, sample, 0, channels, [&](int64_t c, int64_t unit) {
      const Affine<Same<T>> affine = affine_of<T>(p, unit, c);
      table_of(sample, 0)[c] = affine.mean.value, table_of(sample, 1)[c] = affine.scale.value;
      table_of(sample, 2)[c] = affine.offset.value;
    });
  parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for_blocks(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t block) {
      T *sum = partial + block * 2 * padded, *product = sum + padded;
      const int64_t at = (sample * plan.rows + first) * channels;
      reduce_rows<S>(p, tile, at, rows, together, affine_at(sample), sum, product);
    });
  });
  auto fill_slopes = [&](int64_t sample, int64_t first, int64_t last) {
    for_channels(s, sample, first, last, [&](int64_t c, int64_t unit) {
      const Slopes<Same<T>> slopes = slopes_of<T>(p, of_units, unit, c);
      table_of(sample, 3)[c] = slopes.weight.value, table_of(sample, 4)[c] = slopes.along_x.value;
      table_of(sample, 5)[c] = slopes.along_one.value, table_of(sample, 6)[c] = slopes.rstd.value;
    });
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
  // What a dear derivative works with leaves no registers for a strip's numbers.
  const int64_t finished_together = is_dear(p) && !p.dresidual ? 1 : together;
  parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for_blocks_down(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t) {
      const Affine<Each<T>> affine = affine_at(sample);
      const Slopes<Each<T>> slopes = {
          {table_of(sample, 3)}, {table_of(sample, 4)}, {table_of(sample, 5)}, {table_of(sample, 6)}};
      const int64_t at = (sample * plan.rows + first) * channels;
      for_rows_down(rows, finished_together, [&](int64_t row, int64_t n) {
        finish_dx<S, kStream>(p, tile, at + row * channels, n, channels, affine, slopes);
      });
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
    const int tensors = p.residual ? 5 : 3;
    auto run = [&](auto streams) {
      constexpr bool kStream = decltype(streams)::value;
      for_rounds<S>(p, plan, tensors, [&](const ChannelNormBwd& part, const ChannelNormPlan& plan) {
        s.is_last ? backward_rows<S, kStream>(part, plan, bytes_of<S>(s, tensors), num_threads)
                  : backward_planes<S, kStream>(part, plan, num_threads);
      });
    };
    const int64_t bytes = bytes_of<S>(s, 3);
    const bool is_aligned =
        (s.is_last ? s.channels : s.positions) % kLanes<T> == 0 && (uintptr_t)p.dx % PF_VECTOR_BYTES == 0;
    const bool streams = sizeof(S) == 4 && bytes >= kStreamBytes && is_aligned;
    if constexpr (sizeof(S) == 4)
      if (streams) run(Constant<true>{});
    if (!streams) run(Constant<false>{});
    if (!p.dweight && !p.dbias) return;
    // Added to the first sample's, in the order of memory.
    Sums* planes = (Sums*)((char*)p.workspace + plan.sums);
    const int64_t grain = max_of(64, kElementwiseGrain / max_of(1, plan.samples) / 4);
    parallel_ranges(s.channels, grain, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t sample = 0; sample < plan.samples; sample++)
        for_channels(s, sample, begin, end, [&](int64_t c, int64_t unit) {
          const Sums& sums = planes[sample * s.channels + c];
          const double product = sums.product * (double)((const T*)p.rstd)[unit];
          planes[c] = sample ? Sums{planes[c].dz + sums.dz, planes[c].product + product} : Sums{sums.dz, product};
        });
      for (int64_t c = begin; c < end; c++) {
        if (p.dweight) ((T*)p.dweight)[c] = plan.samples ? (T)planes[c].product : 0;
        if (p.dbias) ((T*)p.dbias)[c] = plan.samples ? (T)planes[c].dz : 0;
      }
    });
  });
}

}  // namespace PF_ISA::norm
