// The two passes of the backward of channel_norm_bwd over planes, or over rows of channels, and what comes between
// them: channel_second_rows.h has the formulas.
#pragma once
#include "channel_second_rows.h"

namespace PF_ISA::norm {

namespace {

template <class T>
PF_INLINE T at_channel(const void* values, int64_t channel, T absent) {
  return values ? ((const T*)values)[channel] : absent;
}

template <class T>
PF_INLINE Measured<Same<T>> measured_of(const ChannelNormBwdBwd& p, int64_t unit, int64_t channel) {
  const T rstd = ((const T*)p.rstd)[unit], weight = at_channel<T>(p.weight, channel, 1);
  return {{((const T*)p.mean)[unit]}, {rstd}, {rstd * weight}, {at_channel<T>(p.bias, channel, 0)}};
}

// The numbers of a channel of a unit with which sums, and then rows, are combined.
struct Combined {
  double weight, rstd, fixed, slope;
};
template <class T>
PF_INLINE Combined combined_of(const ChannelNormBwdBwd& p, const SecondUnit& of_unit, int64_t unit, int64_t channel) {
  const double weight = at_channel<T>(p.weight, channel, 1), rstd = ((const T*)p.rstd)[unit];
  return {weight, rstd, at_channel<T>(p.ddbias, channel, 0) - weight * rstd * of_unit.g,
          at_channel<T>(p.ddweight, channel, 0) - weight * rstd * of_unit.g_xhat};
}
PF_INLINE double sum_of_s(const double* sums, const Combined& c) {
  return sums[kEGain] + c.fixed * sums[kE] + c.slope * sums[kEX];
}
PF_INLINE double sum_of_s_xhat(const double* sums, const Combined& c) {
  return sums[kEGainX] + c.fixed * sums[kEX] + c.slope * sums[kEXX];
}

template <class T>
PF_INLINE Changes<Same<T>> changes_of(const ChannelNormBwdBwd& p, const SecondUnit& of_unit, int64_t unit,
                                      int64_t channel) {
  const Combined c = combined_of<T>(p, of_unit, unit, channel);
  return {{(T)c.weight},          {(T)c.fixed},           {(T)c.slope}, {(T)(c.rstd * of_unit.h_xhat)},
          {(T)of_unit.along_one}, {(T)of_unit.along_xhat}};
}

// The means over a unit, from the sums of its planes.
template <class T>
void second_unit(const ChannelNormBwdBwd& p, const ChannelNormPlan& plan, int64_t unit, const SecondSums* planes,
                 SecondUnit* of_units) {
  SecondUnit& u = of_units[unit];
  u = {0, 0, 0, 0, 0};
  if (!p.uses_input) return;
  Planes of = planes_of(p.shape, unit);
  if (p.shape.is_last && !p.shape.groups) of.count = 1;
  const double share = 1 / (double)plan.count, rstd = (double)((const T*)p.rstd)[unit];
  double h = 0, g_h = 0;
  auto each = [&](auto body) {
    for (int64_t i = 0; i < of.count; i++) {
      const int64_t plane = of.first + i * of.step;
      body(planes[plane], plane % p.shape.channels);
    }
  };
  each([&](const double* sums, int64_t channel) {
    const double weight = at_channel<T>(p.weight, channel, 1);
    u.g += sums[kG] * share, u.g_xhat += sums[kGX] * share, u.h_xhat += weight * sums[kDzX] * share;
    h += weight * sums[kDz] * share, g_h += weight * sums[kGDz] * share;
  });
  each([&](const double* sums, int64_t channel) {
    const Combined c = combined_of<T>(p, u, unit, channel);
    u.along_one += (c.weight * sum_of_s(sums, c) + c.slope * sums[kDz]) * share;
    u.along_xhat += (c.weight * sum_of_s_xhat(sums, c) + c.slope * sums[kDzX]) * share;
  });
  u.along_one -= rstd * u.h_xhat * u.g;
  u.along_xhat -= rstd * u.h_xhat * u.g_xhat;
  u.along_xhat += rstd * (g_h - u.g * h - u.g_xhat * u.h_xhat);
}

PF_INLINE bool needs_sums(const ChannelNormBwdBwd& p) { return p.uses_input || p.dweight || p.dbias; }

template <class S>
void sum_second_plane_at(const ChannelNormBwdBwd& p, SecondTile<Acc<S>>& tile, int64_t plane, double* sums) {
  const ChannelNormShape& s = p.shape;
  const int64_t channel = plane % s.channels, cols = s.positions;
  const Measured<Same<Acc<S>>> of = measured_of<Acc<S>>(p, unit_of(s, plane / s.channels, channel), channel);
  const SecondInputs<S> in = inputs_at<S>(p, plane * cols);
  for (int i = 0; i < kCurvedSums; i++) sums[i] = 0;
  with_source(
      p, tile, in, cols, of, [&](int64_t, int64_t n) { fill_ones(tile, n); },
      [&](auto source, int64_t first, int64_t n) { sum_second_plane(source, in.from(first), n, of, sums); });
}

template <class S, bool kStream>
void finish_second_plane(const ChannelNormBwdBwd& p, const SecondUnit* of_units, SecondTile<Acc<S>>& tile,
                         int64_t plane) {
  const ChannelNormShape& s = p.shape;
  const int64_t channel = plane % s.channels, unit = unit_of(s, plane / s.channels, channel);
  finish_second<S, kStream>(p, tile, plane * s.positions, s.positions, measured_of<Acc<S>>(p, unit, channel),
                            changes_of<Acc<S>>(p, of_units[unit], unit, channel));
}

template <class S, bool kStream>
void second_planes(const ChannelNormBwdBwd& p, const ChannelNormPlan& plan, int tensors, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  SecondSums* planes = (SecondSums*)((char*)p.workspace + plan.sums);
  SecondUnit* of_units = (SecondUnit*)((char*)p.workspace + plan.of_units);
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, s.positions));
  const bool writes = p.ddy || p.dx || p.dresidual;
  if (needs_sums(p) && is_cached(s, plan, tensors)) {
    parallel_ranges(plan.units, max_of(1, kElementwiseGrain / plan.count), threads, [&](int64_t begin, int64_t end) {
      SecondTile<T> tile;
      for (int64_t unit = begin; unit < end; unit++) {
        const Planes of = planes_of(s, unit);
        for (int64_t i = 0; i < of.count; i++)
          sum_second_plane_at<S>(p, tile, of.first + i * of.step, planes[of.first + i * of.step]);
        second_unit<T>(p, plan, unit, planes, of_units);
        for (int64_t i = of.count - 1; writes && i >= 0; i--)
          finish_second_plane<S, kStream>(p, of_units, tile, of.first + i * of.step);
      }
      if (kStream) stream_fence();
    });
    return;
  }
  if (needs_sums(p))
    parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
      SecondTile<T> tile;
      for (int64_t plane = begin; plane < end; plane++) sum_second_plane_at<S>(p, tile, plane, planes[plane]);
    });
  for (int64_t unit = 0; unit < plan.units; unit++) second_unit<T>(p, plan, unit, planes, of_units);
  if (!writes) return;
  parallel_ranges(s.batch * s.channels, grain, threads, [&](int64_t begin, int64_t end) {
    SecondTile<T> tile;
    for (int64_t plane = end - 1; plane >= begin; plane--) finish_second_plane<S, kStream>(p, of_units, tile, plane);
    if (kStream) stream_fence();
  });
}

template <class S, int kRows>
void sum_second_rows(const ChannelNormBwdBwd& p, SecondTile<Acc<S>>& tile, int64_t at, const Measured<Each<Acc<S>>>& of,
                     Acc<S>* sums, int64_t padded, bool is_first) {
  const int64_t channels = p.shape.channels;
  const SecondInputs<S> in = inputs_at<S>(p, at);
  with_source(
      p, tile, in, channels, of, [&](int64_t, int64_t n) { fill_ones(tile, n); },
      [&](auto source, int64_t first, int64_t n) {
        if constexpr (kRows == 1 || !decltype(source)::kIsOneRow)
          sum_second_columns<kRows>(source, in.from(first), channels, n, of.from(first), sums + first, padded,
                                    is_first);
      });
}

template <class S, bool kStream>
void second_rows(const ChannelNormBwdBwd& p, const ChannelNormPlan& plan, int threads) {
  typedef Acc<S> T;
  const ChannelNormShape& s = p.shape;
  SecondSums* planes = (SecondSums*)((char*)p.workspace + plan.sums);
  SecondUnit* of_units = (SecondUnit*)((char*)p.workspace + plan.of_units);
  T *tables = (T*)((char*)p.workspace + plan.tables), *partial = (T*)((char*)p.workspace + plan.partial);
  const int64_t blocks = plan.samples * plan.blocks, channels = s.channels, padded = plan.padded;
  const int64_t grain = max_of(1, kElementwiseGrain / (plan.block_rows * channels));
  const int64_t of_block = kCurvedSums * padded;
  const int of_sums = p.is_curved ? kCurvedSums : kFlatSums;  // the rest is not written
  auto table_of = [&](int64_t sample, int which) { return tables + (sample * kChannelSecondTables + which) * padded; };
  auto measured_at = [&](int64_t sample) {
    return Measured<Each<T>>{
        {table_of(sample, 0)}, {table_of(sample, 1)}, {table_of(sample, 2)}, {table_of(sample, 3)}};
  };
  for (int64_t sample = 0; sample < plan.samples; sample++)
    for (int64_t c = 0; c < channels; c++) {
      const Measured<Same<T>> of = measured_of<T>(p, unit_of(s, sample, c), c);
      table_of(sample, 0)[c] = of.mean.value, table_of(sample, 1)[c] = of.rstd.value;
      table_of(sample, 2)[c] = of.scale.value, table_of(sample, 3)[c] = of.offset.value;
    }
  auto fill_changes = [&](int64_t sample, int64_t first, int64_t last) {
    for (int64_t c = first; c < last; c++) {
      const int64_t unit = unit_of(s, sample, c);
      const Changes<Same<T>> by = changes_of<T>(p, of_units[unit], unit, c);
      table_of(sample, 4)[c] = by.weight.value, table_of(sample, 5)[c] = by.fixed.value;
      table_of(sample, 6)[c] = by.slope.value, table_of(sample, 7)[c] = by.of_g.value;
      table_of(sample, 8)[c] = by.along_one.value, table_of(sample, 9)[c] = by.along_xhat.value;
    }
  };
  if (needs_sums(p)) {
    // A tile holds one row.
    const int64_t together = p.ending == Ending::table ? 1 : kTileRows;
    parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
      SecondTile<T> tile;
      for_blocks(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t block) {
        const Measured<Each<T>> of = measured_at(sample);
        T* sums = partial + block * of_block;
        int64_t row = 0;
        const int64_t at = (sample * plan.rows + first) * channels;
        for (; together == kTileRows && row + kTileRows <= rows; row += kTileRows)
          sum_second_rows<S, kTileRows>(p, tile, at + row * channels, of, sums, padded, row == 0);
        for (; row < rows; row++) sum_second_rows<S, 1>(p, tile, at + row * channels, of, sums, padded, row == 0);
      });
    });
  }
  const bool is_summed = needs_sums(p);
  const int64_t combine_grain = max_of(16, kElementwiseGrain / plan.blocks / 16 * 16);
  parallel_ranges(plan.samples * channels, combine_grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at++)
      for (int i = 0; i < kCurvedSums; i++) planes[at][i] = 0;
    for (int64_t sample = begin / channels; sample * channels < end; sample++) {
      const int64_t first = max_of(begin - sample * channels, 0), last = min_of(end - sample * channels, channels);
      for (int64_t block = sample * plan.blocks; is_summed && block < (sample + 1) * plan.blocks; block++)
        for (int i = 0; i < of_sums; i++) {
          const T* sums = partial + block * of_block + i * padded;
          for (int64_t c = first; c < last; c++) planes[sample * channels + c][i] += (double)sums[c];
        }
      if (s.groups) continue;  // their channels may be of other threads
      for (int64_t c = first; c < last; c++) second_unit<T>(p, plan, c, planes, of_units);
      fill_changes(sample, first, last);
    }
  });
  if (s.groups) {
    for (int64_t unit = 0; unit < plan.units; unit++) second_unit<T>(p, plan, unit, planes, of_units);
    for (int64_t sample = 0; sample < plan.samples; sample++) fill_changes(sample, 0, channels);
  }
  if (!p.ddy && !p.dx && !p.dresidual) return;
  parallel_ranges(blocks, grain, threads, [&](int64_t begin, int64_t end) {
    SecondTile<T> tile;
    for_blocks_down(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t) {
      const Measured<Each<T>> of = measured_at(sample);
      const Changes<Each<T>> by = {{table_of(sample, 4)}, {table_of(sample, 5)}, {table_of(sample, 6)},
                                   {table_of(sample, 7)}, {table_of(sample, 8)}, {table_of(sample, 9)}};
      const int64_t at = (sample * plan.rows + first) * channels;
      for (int64_t row = rows - 1; row >= 0; row--)
        finish_second<S, kStream>(p, tile, at + row * channels, channels, of, by);
    });
    if (kStream) stream_fence();
  });
}

// dweight and dbias of all samples.
template <class T>
void second_parameters(const ChannelNormBwdBwd& p, const ChannelNormPlan& plan) {
  const ChannelNormShape& s = p.shape;
  const SecondSums* planes = (const SecondSums*)((const char*)p.workspace + plan.sums);
  const SecondUnit* of_units = (const SecondUnit*)((const char*)p.workspace + plan.of_units);
  for (int64_t c = 0; c < s.channels; c++) {
    double dweight = 0, dbias = 0;
    for (int64_t sample = 0; sample < plan.samples; sample++) {
      const double* sums = planes[sample * s.channels + c];
      const int64_t unit = unit_of(s, sample, c);
      const SecondUnit& u = of_units[unit];
      const Combined by = combined_of<T>(p, u, unit, c);
      dweight += by.rstd * (sums[kGDz] - u.g * sums[kDz] - u.g_xhat * sums[kDzX]) + sum_of_s_xhat(sums, by);
      dbias += sum_of_s(sums, by);
    }
    if (p.dweight) ((T*)p.dweight)[c] = (T)dweight;
    if (p.dbias) ((T*)p.dbias)[c] = (T)dbias;
  }
}

}  // namespace

void channel_norm_bwd_bwd(const ChannelNormBwdBwd& p, int num_threads) {
  const ChannelNormPlan plan = channel_norm_plan(p.shape, kChannelNormSecondRoom);
  const ChannelNormShape& s = p.shape;
  const int tensors = 2 + !!p.ddx + !!p.residual + !!p.ddresidual + !!p.ddy + !!p.dx + !!p.dresidual;
  for_dtype(s.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> T;
    auto run = [&](auto streams) {
      constexpr bool kStream = decltype(streams)::value;
      for_rounds<S>(p, plan, tensors, [&](const ChannelNormBwdBwd& part, const ChannelNormPlan& plan) {
        s.is_last ? second_rows<S, kStream>(part, plan, num_threads)
                  : second_planes<S, kStream>(part, plan, tensors, num_threads);
      });
    };
    const int64_t bytes = s.batch * s.channels * s.positions * (int64_t)sizeof(S) * tensors;
    const bool is_aligned = (s.is_last ? s.channels : s.positions) % kLanes<T> == 0 &&
                            ((uintptr_t)p.ddy | (uintptr_t)p.dx | (uintptr_t)p.dresidual) % PF_VECTOR_BYTES == 0;
    const bool streams = sizeof(S) == 4 && bytes >= kStreamBytes && is_aligned;
    if constexpr (sizeof(S) == 4)
      if (streams) run(Constant<true>{});
    if (!streams) run(Constant<false>{});
    if (p.dweight || p.dbias) second_parameters<T>(p, plan);
  });
}

}  // namespace PF_ISA::norm
