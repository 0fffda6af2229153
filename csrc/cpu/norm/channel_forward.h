// BatchNorm, GroupNorm and InstanceNorm forward: moments of channels, their units' statistics, and one pass that
// normalises, adds a residual and applies an activation. Where positions are adjacent and a unit fits into the second
// cache, a thread takes it through all three.
#pragma once
#include "channel_tile.h"

namespace PF_ISA::norm {

namespace {

constexpr int64_t kUnitBytes = 512 << 10;  // of all tensors of a unit that stays in the second cache

// Which planes (a channel of a sample, [positions]) a unit has: `count`, `step` apart.
struct Planes {
  int64_t first, step, count;
};
PF_INLINE Planes planes_of(const ChannelNormShape& s, int64_t unit) {
  if (!s.groups) return {unit, s.channels, s.batch};
  const int64_t share = s.channels / s.groups;
  return {unit * share, 1, share};
}
PF_INLINE int64_t unit_of(const ChannelNormShape& s, int64_t sample, int64_t channel) {
  return s.groups ? sample * s.groups + channel / (s.channels / s.groups) : channel;
}
PF_INLINE int64_t unit_bytes(const ChannelNormShape& s, const ChannelNormPlan& plan, int tensors) {
  return plan.count * (s.dtype == Dtype::f64 ? 8 : s.dtype == Dtype::f32 ? 4 : 2) * tensors;
}
PF_INLINE bool is_cached(const ChannelNormShape& s, const ChannelNormPlan& plan, int tensors) {
  return !s.is_last && plan.units > 1 && unit_bytes(s, plan, tensors) <= kUnitBytes;
}

// body(first, last) over [begin, end), units that a thread takes through all passes together: where their planes lie a
// sample apart, as many as make pieces that the processor's prefetch sees. (Zen 4, one thread, BatchNorm's backward of
// 8x2048x7x7, whose planes are 196 bytes: 1.47 ms unit by unit, 1.05 ms so.)
template <class Body>
PF_INLINE void for_runs(const ChannelNormShape& s, const ChannelNormPlan& plan, int tensors, int64_t begin, int64_t end,
                        Body body) {
  const int64_t run = s.groups ? 1 : max_of(1, kUnitBytes / 2 / max_of(1, unit_bytes(s, plan, tensors)));
  for (int64_t first = begin; first < end; first += run) body(first, min_of(end, first + run));
}

// A plane, and what it belongs to. Counted where planes are small: a division takes as long as a vector or two.
struct Place {
  int64_t plane, unit, channel;
};
PF_INLINE Place place_of(const ChannelNormShape& s, int64_t plane) {
  const int64_t channel = plane % s.channels;
  return {plane, unit_of(s, plane / s.channels, channel), channel};
}

// body(place) for the planes of such a run, in the order of memory; and from the last to the first.
template <class Body>
PF_INLINE void for_planes(const ChannelNormShape& s, int64_t first, int64_t last, Body body) {
  const Planes of = planes_of(s, first);
  const int64_t channel = of.first % s.channels;
  for (int64_t i = 0; i < of.count; i++)
    for (int64_t unit = first; unit < last; unit++)
      body(Place{of.first + i * of.step + unit - first, unit, s.groups ? channel + i : unit});
}
template <class Body>
PF_INLINE void for_planes_down(const ChannelNormShape& s, int64_t first, int64_t last, Body body) {
  const Planes of = planes_of(s, first);
  const int64_t channel = of.first % s.channels;
  for (int64_t i = of.count - 1; i >= 0; i--)
    for (int64_t unit = last - 1; unit >= first; unit--)
      body(Place{of.first + i * of.step + unit - first, unit, s.groups ? channel + i : unit});
}

// body(channel, unit) for the channels [first, last) of a sample.
template <class Body>
PF_INLINE void for_channels(const ChannelNormShape& s, int64_t sample, int64_t first, int64_t last, Body body) {
  if (first >= last) return;
  const int64_t share = s.groups ? s.channels / s.groups : 1;
  int64_t unit = unit_of(s, sample, first), next = (first / share + 1) * share;
  for (int64_t channel = first; channel < last; channel++) {
    if (channel == next) unit++, next += share;
    body(channel, unit);
  }
}

// The same problem from another sample on.
template <class P>
PF_INLINE void advance(P& at, int64_t bytes) {
  if (at) at = (P)((const char*)at + bytes);
}
PF_INLINE void advance(ChannelNormFwd& p, int64_t bytes, int64_t of_units) {
  advance(p.x, bytes), advance(p.residual, bytes), advance(p.y, bytes);
  advance(p.mean, of_units), advance(p.rstd, of_units);
}
PF_INLINE void advance(ChannelNormBwd& p, int64_t bytes, int64_t of_units) {
  advance(p.dy, bytes), advance(p.x, bytes), advance(p.residual, bytes);
  advance(p.dx, bytes), advance(p.dresidual, bytes);
  advance(p.mean, of_units), advance(p.rstd, of_units);
}
PF_INLINE void advance(ChannelNormBwdBwd& p, int64_t bytes, int64_t of_units) {
  advance(p.ddx, bytes), advance(p.ddresidual, bytes), advance(p.dy, bytes), advance(p.x, bytes);
  advance(p.residual, bytes), advance(p.ddy, bytes), advance(p.dx, bytes), advance(p.dresidual, bytes);
  advance(p.mean, of_units), advance(p.rstd, of_units);
}

// run(problem, plan), for a few samples at a time where they have units of their own: their tensors stay in the third
// cache from one pass to the next. (A tenth of the time of tensors of 8 MB on Zen 5.) What the passes leave in the
// workspace is where it would be if all samples were taken together.
constexpr int64_t kRoundBytes = 4 << 20;

template <class S, class Problem, class Run>
PF_INLINE void for_rounds(const Problem& p, const ChannelNormPlan& plan, int tensors, Run run) {
  const ChannelNormShape& s = p.shape;
  const int64_t bytes = s.channels * s.positions * (int64_t)sizeof(S);
  const int64_t step = max_of(1, kRoundBytes / max_of(1, bytes * tensors));
  if (!s.groups || s.batch <= step || is_cached(s, plan, tensors)) return run(p, plan);
  for (int64_t first = 0; first < s.batch; first += step) {
    Problem part = p;
    advance(part, first * bytes, first * s.groups * (int64_t)sizeof(Acc<S>));
    part.shape.batch = min_of(step, s.batch - first);
    ChannelNormPlan of_part = plan;
    of_part.samples = part.shape.batch, of_part.units = part.shape.batch * s.groups;
    of_part.sums += first * s.channels * plan.room.sums * 8;
    of_part.of_units += first * s.groups * plan.room.of_unit * 8;
    run(part, of_part);
  }
}

struct Moments {
  double mean, squares;  // of the deviations from the mean, summed
};

template <class S>
Moments plane_moments(const S* x, int64_t count) {
  typedef Acc<S> T;
  const int64_t first = min_of(count, kLanes<T>);
  T shift = reduce_add(load_n(x, first)) / (T)first;  // a guess: see layer_norm_fwd_rows
  if (!__builtin_isfinite(shift)) shift = 0;  // an infinity's own deviation would be NaN, where the mean is infinite
  double sum, square;
  layer_norm_sums<S, false, false>(x, (const S*)nullptr, (S*)nullptr, count, shift, &sum, &square);
  double correction = sum / (double)count, variance = square / (double)count - correction * correction;
  if (!(correction * correction <= variance) && __builtin_isfinite(sum)) {
    shift = (T)(shift + correction);
    layer_norm_sums<S, false, false>(x, (const S*)nullptr, (S*)nullptr, count, shift, &sum, &square);
    correction = sum / (double)count, variance = square / (double)count - correction * correction;
    if (variance < 0) variance = 0;
  }
  if (__builtin_isinf(square) && __builtin_isfinite(sum) && sizeof(T) == 4) {
    const double unit = 0x1p-96;
    variance = layer_norm_large_variance<S, false, true>(x, (const S*)nullptr, count, &shift, (T)unit) / (unit * unit);
    correction = 0;
  }
  return {(double)shift + correction, variance * (double)count};
}

// Sums over rows of the deviations from `shift` and of their squares, with kScales in units of 1 / unit.
template <class S, bool kScales>
void sum_rows(const S* x, int64_t rows, int64_t channels, Acc<S>* partial, int64_t padded) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  T *shift = partial, *sum = partial + padded, *square = partial + 2 * padded, *unit = partial + 3 * padded;
  for_strips<T>(channels, [&](int64_t j0, auto count, auto strip) {
    constexpr int vectors = decltype(strip)::vectors;
    V from[vectors], sums[vectors] = {}, squares[vectors] = {};
    load_strip<vectors>(Each<T>{shift}, j0, from);
    const int64_t next = next_strip<T>(j0, rows, channels, channels);
    for_row_groups(rows, [&](int64_t row, auto group) {
      PF_UNROLL
      for (int v = 0; v < vectors; v++) {
        const int64_t j = j0 + v * kLanes<T>;
        V of_rows = {}, of_squares = {};
        PF_UNROLL
        for (int r = 0; r < decltype(group)::vectors; r++) {
          const S* at = x + (row + r) * channels + j;
          __builtin_prefetch(at + next, 0, 2);
          V d = load_part(at, count) - from[v];
          if (kScales) d *= load(unit + j);
          of_rows += d;
          of_squares = fma(d, d, of_squares);
        }
        sums[v] += of_rows, squares[v] += of_squares;
      }
    });
    PF_UNROLL
    for (int v = 0; v < vectors; v++)
      store(sum + j0 + v * kLanes<T>, sums[v]), store(square + j0 + v * kLanes<T>, squares[v]);
  });
}

// Moments of a block of rows [rows, channels]: shift, sum, sum of squares and the unit that these are in, [4, padded].
template <class S>
void block_sums(const S* x, int64_t rows, int64_t channels, Acc<S>* partial, int64_t padded) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  T *shift = partial, *sum = partial + padded, *square = partial + 2 * padded, *unit = partial + 3 * padded;
  const int64_t guess = min_of(rows, kTileRows);  // rows whose mean is the first guess
  for_columns<T, 1>(0, padded, [&](int64_t j, auto, int) { store(shift + j, V{}), store(unit + j, splat<V>(1)); });
  for_columns<T, 1>(0, channels, [&](int64_t j, auto count, int) {
    V first = {};
    for (int64_t r = 0; r < guess; r++) first += load_part(x + r * channels + j, count);
    first /= (T)guess;
    store(shift + j, select(first - first == V{}, first, V{}));  // finite: an infinity's own deviation would be NaN
  });
  sum_rows<S, false>(x, rows, channels, partial, padded);
  // The variance is a difference, which costs digits where the guess was off by deviations: then once more, from the
  // mean.
  const V share = splat<V>((T)(1 / (double)rows));
  V bad = {}, large = {};
  for_columns<T, 1>(0, channels, [&](int64_t j, auto, int) {
    V mean = load(sum + j) * share, variance = load(square + j) * share - mean * mean;
    // Of what is not finite the first sums are right.
    bad += select((mean * mean <= variance * (T)4) | (mean - mean != V{}), V{}, splat<V>(1));
    const auto is_large = load(square + j) > (T)(sizeof(T) == 4 ? 3e38 : 1e308);
    large += select(is_large, splat<V>(1), V{});
    store(unit + j, select(is_large, splat<V>(sizeof(T) == 4 ? (T)0x1p-96 : (T)0x1p-700), splat<V>(1)));
  });
  if (!(reduce_add(bad) > 0)) return;
  const bool has_large = reduce_add(large) > 0;
  if (has_large) sum_rows<S, true>(x, rows, channels, partial, padded);
  for_columns<T, 1>(0, channels, [&](int64_t j, auto, int) {
    const V mean = load(shift + j) + load(sum + j) * share / load(unit + j);
    store(shift + j, select(mean - mean == V{}, mean, load(shift + j)));
  });
  has_large ? sum_rows<S, true>(x, rows, channels, partial, padded)
            : sum_rows<S, false>(x, rows, channels, partial, padded);
}

// Moments of channels [begin, end) of a matrix from those of its blocks (Chan et al. 1979).
template <class T>
void combine_blocks(const T* partial, const ChannelNormPlan& plan, int64_t begin, int64_t end, Moments* moments) {
  const int64_t stride = kChannelPartial * plan.padded;
  auto rows_of = [&](int64_t block) { return (double)min_of(plan.block_rows, plan.rows - block * plan.block_rows); };
  for (int64_t c = begin; c < end; c++) moments[c] = {0, 0};
  for (int64_t block = 0; block < plan.blocks; block++) {
    const T *shift = partial + block * stride, *sum = shift + plan.padded, *unit = shift + 3 * plan.padded;
    const double rows = rows_of(block);
    for (int64_t c = begin; c < end; c++)
      moments[c].mean += (double)sum[c] / (double)unit[c] + rows * ((double)shift[c] - (double)partial[c]);
  }
  for (int64_t c = begin; c < end; c++) moments[c].mean = (double)partial[c] + moments[c].mean / (double)plan.rows;
  for (int64_t block = 0; block < plan.blocks; block++) {
    const T *shift = partial + block * stride, *sum = shift + plan.padded, *square = sum + plan.padded;
    const T* unit = square + plan.padded;
    const double rows = rows_of(block), share = 1 / rows;
    for (int64_t c = begin; c < end; c++) {
      const double per_unit = 1 / (double)unit[c];
      const double own = (double)sum[c] * per_unit, apart = (double)shift[c] + own * share - moments[c].mean;
      const double squares = (double)square[c] * per_unit * per_unit - own * own * share;
      moments[c].squares += (squares > 0 || squares != squares ? squares : 0) + rows * apart * apart;
    }
  }
}

// A unit's moments from those of its planes, which are all of one size; written with mean and rstd.
template <class T>
Moments unit_statistics(const ChannelNormFwd& p, const ChannelNormPlan& plan, int64_t unit, const Moments* planes,
                        Moments* units) {
  Moments m;
  double variance;
  if (p.uses_input) {
    Planes of = planes_of(p.shape, unit);
    if (p.shape.is_last && !p.shape.groups) of.count = 1;  // one matrix
    const Moments* at = planes + of.first;
    const double reference = __builtin_isfinite(at->mean) ? at->mean : 0, count = (double)(plan.count / of.count);
    m = {0, 0};
    for (int64_t i = 0; i < of.count; i++) m.mean += at[i * of.step].mean - reference;
    m.mean = reference + m.mean / (double)of.count;
    for (int64_t i = 0; i < of.count; i++) {
      const double apart = at[i * of.step].mean - m.mean;
      m.squares += at[i * of.step].squares + count * apart * apart;
    }
    variance = m.squares / (double)plan.count;
  } else {
    m = {(double)((const T*)p.running_mean)[unit], 0};
    variance = (double)((const T*)p.running_var)[unit];
  }
  units[unit] = m;
  ((T*)p.mean)[unit] = (T)m.mean;
  ((T*)p.rstd)[unit] = (T)(1 / __builtin_sqrt(variance + p.eps));
  return m;
}

// What a channel of a unit is multiplied with and moved by.
template <class T>
PF_INLINE Affine<Same<T>> affine_of(const ChannelNormFwd& p, const Moments* units, int64_t unit, int64_t channel) {
  const double factor = p.weight ? (double)((const T*)p.weight)[channel] : 1;
  const double moved = p.bias ? (double)((const T*)p.bias)[channel] : 0;
  const T mean = ((const T*)p.mean)[unit];
  const double scale = (double)((const T*)p.rstd)[unit] * factor;
  return {{mean}, {(T)scale}, {(T)(moved - (units[unit].mean - (double)mean) * scale)}};
}

template <class S, bool kStream, class C>
PF_INLINE void finish_rows(const ChannelNormFwd& p, Tile<Acc<S>>& tile, int64_t at, int64_t rows, int64_t cols,
                           const Affine<C>& affine) {
  typedef Acc<S> T;
  const S *x = (const S*)p.x + at, *residual = p.residual ? (const S*)p.residual + at : nullptr;
  S* y = (S*)p.y + at;
  if (for_ending(p.ending,
                 [&](auto act) { normalise_rows<S, S, kStream>(act, x, residual, y, rows, cols, cols, affine); }))
    return;
  for (int64_t row = rows - 1; row >= 0; row--)
    for_pieces_down(cols, [&](int64_t j, int64_t n) {
      const int64_t from = row * cols + j;
      normalise_row<S, T, false>(NoActivation{}, x + from, residual ? residual + from : residual, tile.z, n,
                                 affine.from(j));
      pointwise::for_activation(p.activation, [&](auto act) { activate_row<T>(act, tile.z, n); });
      convert_row<T, S, kStream>(tile.z, y + from, n);
    });
}

template <class S, bool kStream>
void finish_plane(const ChannelNormFwd& p, const Moments* units, Tile<Acc<S>>& tile, const Place& at) {
  const int64_t positions = p.shape.positions;
  finish_rows<S, kStream>(p, tile, at.plane * positions, 1, positions,
                          affine_of<Acc<S>>(p, units, at.unit, at.channel));
}

template <class S, bool kStream>
void forward_planes(const ChannelNormFwd& p, const ChannelNormPlan& plan, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  Moments *planes = (Moments*)((char*)p.workspace + plan.sums), *units = (Moments*)((char*)p.workspace + plan.of_units);
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, s.positions));
  auto measure = [&](int64_t plane) {
    planes[plane] = plane_moments((const S*)p.x + plane * s.positions, s.positions);
  };
  const int tensors = p.residual ? 3 : 2;
  if (p.uses_input && is_cached(s, plan, tensors)) {
    parallel_ranges(plan.units, max_of(1, kElementwiseGrain / plan.count), threads, [&](int64_t begin, int64_t end) {
      Tile<T> tile;
      for_runs(s, plan, tensors, begin, end, [&](int64_t first, int64_t last) {
        for_planes(s, first, last, [&](const Place& at) { measure(at.plane); });
        for (int64_t unit = first; unit < last; unit++) unit_statistics<T>(p, plan, unit, planes, units);
        for_planes_down(s, first, last, [&](const Place& at) { finish_plane<S, kStream>(p, units, tile, at); });
      });
      if (kStream) stream_fence();
    });
    return;
  }
  if (p.uses_input)
    parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; plane++) measure(plane);
    });
  for (int64_t unit = 0; unit < plan.units; unit++) unit_statistics<T>(p, plan, unit, planes, units);
  parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for (int64_t plane = end - 1; plane >= begin; plane--) finish_plane<S, kStream>(p, units, tile, place_of(s, plane));
    if (kStream) stream_fence();
  });
}

template <class S, bool kStream>
void forward_rows(const ChannelNormFwd& p, const ChannelNormPlan& plan, int64_t together, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  Moments *planes = (Moments*)((char*)p.workspace + plan.sums), *units = (Moments*)((char*)p.workspace + plan.of_units);
  T *tables = (T*)((char*)p.workspace + plan.tables), *partial = (T*)((char*)p.workspace + plan.partial);
  const int64_t blocks = plan.samples * plan.blocks, channels = s.channels;
  const int64_t grain = max_of(1, kElementwiseGrain / (plan.block_rows * channels));
  const int64_t matrix = kChannelPartial * plan.padded * plan.blocks;
  if (p.uses_input) {
    parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
      for_blocks(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t block) {
        block_sums((const S*)p.x + (sample * plan.rows + first) * channels, rows, channels,
                   partial + block * kChannelPartial * plan.padded, plan.padded);
      });
    });
  }
  auto fill_tables = [&](int64_t sample, int64_t first, int64_t last) {
    for_channels(s, sample, first, last, [&](int64_t c, int64_t unit) {
      const Affine<Same<T>> affine = affine_of<T>(p, units, unit, c);
      T* table = tables + sample * 3 * plan.padded + c;
      table[0] = affine.mean.value, table[plan.padded] = affine.scale.value,
      table[2 * plan.padded] = affine.offset.value;
    });
  };
  const int64_t channels_grain = max_of(16, kElementwiseGrain / max_of(1, plan.blocks) / 16 * 16);
  parallel_ranges(plan.samples * channels, channels_grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t sample = begin / channels; sample * channels < end; sample++) {
      const int64_t first = max_of(begin - sample * channels, 0), last = min_of(end - sample * channels, channels);
      if (p.uses_input) combine_blocks(partial + sample * matrix, plan, first, last, planes + sample * channels);
      if (s.groups) continue;  // their channels may be of other threads
      for (int64_t c = first; c < last; c++) unit_statistics<T>(p, plan, c, planes, units);
      fill_tables(sample, first, last);
    }
  });
  if (s.groups) {
    for (int64_t unit = 0; unit < plan.units; unit++) unit_statistics<T>(p, plan, unit, planes, units);
    for (int64_t sample = 0; sample < plan.samples; sample++) fill_tables(sample, 0, channels);
  }
  parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
    Tile<T> tile;
    for_blocks_down(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t) {
      const T* table = tables + sample * 3 * plan.padded;
      const Affine<Each<T>> affine = {{table}, {table + plan.padded}, {table + 2 * plan.padded}};
      for_rows_down(rows, together, [&](int64_t row, int64_t n) {
        finish_rows<S, kStream>(p, tile, (sample * plan.rows + first + row) * channels, n, channels, affine);
      });
    });
    if (kStream) stream_fence();
  });
}

// Of the units that a channel is in, the average; the variance without bias, as torch's.
template <class T>
void track(const ChannelNormFwd& p, const ChannelNormPlan& plan, const Moments* units) {
  const int64_t samples = p.shape.groups ? p.shape.batch : 1;
  for (int64_t c = 0; c < p.shape.channels; c++) {
    double mean = 0, variance = 0;
    for (int64_t sample = 0; sample < samples; sample++) {
      const Moments& m = units[unit_of(p.shape, sample, c)];
      mean += m.mean, variance += m.squares / (double)(plan.count - 1);
    }
    const double share = p.momentum / (double)samples, kept = 1 - p.momentum;
    ((T*)p.new_running_mean)[c] = (T)(kept * (double)((const T*)p.running_mean)[c] + share * mean);
    ((T*)p.new_running_var)[c] = (T)(kept * (double)((const T*)p.running_var)[c] + share * variance);
  }
}

}  // namespace

void channel_norm_fwd(const ChannelNormFwd& p, int num_threads) {
  const ChannelNormPlan plan = channel_norm_plan(p.shape, kChannelNormRoom);
  const ChannelNormShape& s = p.shape;
  for_dtype(s.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> T;
    const int64_t bytes = bytes_of<S>(s, p.residual ? 3 : 2), together = rows_together<T>(s.channels, bytes);
    auto run = [&](auto streams) {
      constexpr bool kStream = decltype(streams)::value;
      for_rounds<S>(p, plan, p.residual ? 3 : 2, [&](const ChannelNormFwd& part, const ChannelNormPlan& plan) {
        s.is_last ? forward_rows<S, kStream>(part, plan, together, num_threads)
                  : forward_planes<S, kStream>(part, plan, num_threads);
      });
    };
    // Only whole aligned vectors of float are streamed.
    const bool is_aligned =
        (s.is_last ? s.channels : s.positions) % kLanes<T> == 0 && (uintptr_t)p.y % PF_VECTOR_BYTES == 0;
    const bool streams = sizeof(S) == 4 && bytes >= kStreamBytes && is_aligned;
    if constexpr (sizeof(S) == 4)
      if (streams) run(Constant<true>{});
    if (!streams) run(Constant<false>{});
    if (p.new_running_mean) track<T>(p, plan, (const Moments*)((char*)p.workspace + plan.of_units));
  });
}

}  // namespace PF_ISA::norm
