// The backward of channel_norm_bwd. With xhat = (x - mean) rstd, z = weight xhat + bias + residual, dz = dy act'(z),
// h = weight dz, and P(a) = a - mean(a) - xhat mean(a xhat) over a unit, the first backward is dx = rstd P(h),
// dresidual = dz, dweight = sum dz xhat, dbias = sum dz. What arrives at these is ddx and so on. Then
//
//   q   = weight rstd P(ddx) + ddresidual + ddweight xhat + ddbias     arrives at dz,
//   ddy = act'(z) q   and   s = dy act''(z) q                          at dy and at z,
//   t   = weight s + ddweight dz - rstd (ddx mean(h xhat) + h mean(ddx xhat))        at xhat,
//   dx  = rstd (P(t) - xhat rstd mean(ddx P(h))),   dresidual = s,
//   dweight = sum (dz rstd P(ddx) + s xhat),   dbias = sum s.
//
// P(ddx) is known once two means are, and what is summed with it is a combination of sums without it: so one pass sums
// and one writes, as in the first backward. Statistics that are not of x have neither P nor what depends on it.
#pragma once
#include "channel_backward.h"

namespace PF_ISA::norm {

namespace {

// Of a channel of a sample: over its positions, with e = dy act''(z) and gain = weight rstd ddx + ddresidual.
enum Sum { kG, kGX, kDz, kDzX, kGDz, kE, kEX, kEXX, kEGain, kEGainX };
constexpr int kFlatSums = kE, kCurvedSums = kEGainX + 1;
typedef double SecondSums[kCurvedSums];
struct SecondUnit {  // means over a unit: of ddx, of ddx xhat, of h xhat; along_*: what t has nothing of
  double g, g_xhat, h_xhat, along_one, along_xhat;
};
static_assert(sizeof(SecondUnit) == kChannelSecondUnit * 8, "its room in the workspace");
static_assert(kCurvedSums == kChannelSecondSums, "as many sums");

// What the first pass needs of a channel, and what the second needs as well.
template <class C>
struct Measured {
  C mean, rstd, scale, offset;
  Measured from(int64_t j) const { return {mean.from(j), rstd.from(j), scale.from(j), offset.from(j)}; }
};
template <class C>
struct Changes {  // q = scale ddx + ddresidual + fixed + slope xhat; t has -of_g ddx
  C weight, fixed, slope, of_g, along_one, along_xhat;
  Changes from(int64_t j) const {
    return {weight.from(j), fixed.from(j), slope.from(j), of_g.from(j), along_one.from(j), along_xhat.from(j)};
  }
};

// dz, s and ddy of dy, q and z; s is linear in q: of 1 it is e.
template <class Act>
struct Bend {
  static constexpr bool kIsCurved = Act::kIsCurved;
  Act act;

  template <class V>
  PF_MEMBER void of(V dy, V q, V z, V& dz, V& s, V& ddy) const {
    const V saved = Act::kFromOutput ? act.forward(z) : z;
    dz = act.backward(dy, saved), ddy = act.backward(q, saved), s = V{};
    if constexpr (kIsCurved) {
      s = act.double_backward(q, dy, saved);
      if constexpr (Act::kFromOutput) s = act.backward(s, saved);
    }
  }
};

// Where rows' dz, s and ddy come from: computed in registers, or from a tile, where an activation has left them.
template <class Act, class S>
struct InRegisters {
  static constexpr bool kIsCurved = Act::kIsCurved, kIsOneRow = false;
  Bend<Act> bend;
  const S *dy, *residual;

  template <class V, class Count>
  PF_MEMBER void of(int64_t at, int64_t, Count count, V z, V q, V& dz, V& s, V& ddy) const {
    if (residual) z += load_part(residual + at, count);
    bend.of(load_part(dy + at, count), q, z, dz, s, ddy);
  }
};
template <bool kCurved, class T>
struct FromTile {
  static constexpr bool kIsCurved = kCurved, kIsOneRow = true;
  const T *dz_row, *s_row, *ddy_row;

  template <class V, class Count>
  PF_MEMBER void of(int64_t, int64_t j, Count count, V, V, V& dz, V& s, V& ddy) const {
    dz = load_part(dz_row + j, count), ddy = load_part(ddy_row + j, count);
    s = kCurved ? load_part(s_row + j, count) : V{};
  }
};

template <class T>
struct SecondTile {
  T z[kTileStride] __attribute__((aligned(64)));
  T dz[kTileStride] __attribute__((aligned(64)));
  T q[kTileStride] __attribute__((aligned(64)));
};

template <class T, class Act>
__attribute__((noinline)) void bend_row(const Bend<Act> bend, T* z, T* dz, T* q, int64_t cols) {
  for (int64_t j = 0; j < cols; j += kLanes<T>) {
    Vec<T> dz_now, s, ddy;
    bend.of(load(dz + j), load(q + j), load(z + j), dz_now, s, ddy);
    store(z + j, s), store(dz + j, dz_now), store(q + j, ddy);
  }
}

// The inputs of rows, from an element on; the last two may be null.
template <class S>
struct SecondInputs {
  const S *dy, *x, *residual, *ddx, *ddresidual;
  SecondInputs from(int64_t j) const {
    return {dy + j, x + j, residual ? residual + j : residual, ddx ? ddx + j : ddx,
            ddresidual ? ddresidual + j : ddresidual};
  }
};
template <class S>
struct SecondOutputs {
  S *ddy, *dx, *dresidual;
  SecondOutputs from(int64_t j) const {
    return {ddy ? ddy + j : ddy, dx ? dx + j : dx, dresidual ? dresidual + j : dresidual};
  }
};

template <bool kCurved, class V>
PF_INLINE void add_terms(V* sums, V g, V xhat, V dz, V e, V gain) {
  sums[kG] += g, sums[kGX] = fma(g, xhat, sums[kGX]);
  sums[kDz] += dz, sums[kDzX] = fma(dz, xhat, sums[kDzX]), sums[kGDz] = fma(g, dz, sums[kGDz]);
  if constexpr (kCurved) {
    const V along = e * xhat;
    sums[kE] += e, sums[kEX] += along, sums[kEXX] = fma(along, xhat, sums[kEXX]);
    sums[kEGain] = fma(e, gain, sums[kEGain]), sums[kEGainX] = fma(along, gain, sums[kEGainX]);
  }
}

// One vector of a row: its terms.
template <class Source, class S, class V, class Count>
PF_INLINE void add_vector(const Source& source, const SecondInputs<S>& in, int64_t at, int64_t j, Count count, V mean,
                          V rstd, V scale, V offset, V* sums) {
  const V centred = load_part(in.x + at, count, mean[0]) - mean;
  const V g = in.ddx ? load_part(in.ddx + at, count) : V{};
  V gain = g * scale, dz, e, unused;
  if (in.ddresidual) gain += load_part(in.ddresidual + at, count);
  source.of(at, j, count, fma(centred, scale, offset), splat<V>(1), dz, e, unused);
  add_terms<Source::kIsCurved>(sums, g, centred * rstd, dz, e, gain);
}

template <class Source, class S>
void sum_second_plane(const Source source, const SecondInputs<S> in, int64_t cols, const Measured<Same<Acc<S>>>& of,
                      double* sums) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int64_t chunk = 64 * kLanes<T>;  // elements that are summed in T
  constexpr int count_of_sums = Source::kIsCurved ? kCurvedSums : kFlatSums;
  const V mean = splat<V>(of.mean.value), rstd = splat<V>(of.rstd.value), scale = splat<V>(of.scale.value);
  const V offset = splat<V>(of.offset.value);
  for (int64_t j0 = 0; j0 < cols; j0 += chunk) {
    V found[kCurvedSums] = {};
    for_columns<T, 1>(j0, min_of(cols, j0 + chunk), [&](int64_t j, auto count, int) {
      // Behind the last element x is the mean, and dy 0: so are dz and e.
      add_vector(source, in, j, j, count, mean, rstd, scale, offset, found);
    });
    for (int i = 0; i < count_of_sums; i++) sums[i] += (double)reduce_add(found[i]);
  }
}

// The same of kRows rows of channels, added to each channel's sums [kChannelSecondSums, padded].
template <int kRows, class Source, class S>
PF_INLINE void sum_second_columns(const Source source, const SecondInputs<S> in, int64_t stride, int64_t cols,
                                  const Measured<Each<Acc<S>>>& of, Acc<S>* sums, int64_t padded, bool is_first) {
  typedef Vec<Acc<S>> V;
  constexpr int count_of_sums = Source::kIsCurved ? kCurvedSums : kFlatSums;
  for_columns<Acc<S>, 1>(0, cols, [&](int64_t j, auto count, int) {
    const V mean = load(of.mean.values + j), rstd = load(of.rstd.values + j), scale = load(of.scale.values + j);
    const V offset = load(of.offset.values + j);
    V found[kCurvedSums] = {};
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      const int64_t at = r * stride + j;
      if (kRows > 1) {
        ask_ahead(in.x + at);
        if (in.ddx) ask_ahead(in.ddx + at);
      }
      add_vector(source, in, at, j, count, mean, rstd, scale, offset, found);
    }
    PF_UNROLL
    for (int i = 0; i < count_of_sums; i++) {
      Acc<S>* sum = sums + i * padded + j;
      store(sum, is_first ? found[i] : load(sum) + found[i]);
    }
  });
}

template <bool kStream, class Source, class S, class C>
PF_INLINE void second_row(const Source source, const SecondInputs<S> in, const SecondOutputs<S> out, int64_t cols,
                          const Measured<C>& of, const Changes<C>& by) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for_columns_down<T>(0, cols, [&](int64_t j, auto count) {
    const V centred = load_part(in.x + j, count) - C::of(of.mean, j), xhat = centred * C::of(of.rstd, j);
    const V scale = C::of(of.scale, j), g = in.ddx ? load_part(in.ddx + j, count) : V{};
    V q = fma(xhat, C::of(by.slope, j), fma(g, scale, C::of(by.fixed, j))), dz, s, ddy;
    if (in.ddresidual) q += load_part(in.ddresidual + j, count);
    source.of(j, j, count, fma(centred, scale, C::of(of.offset, j)), q, dz, s, ddy);
    if (out.ddy) store_row<kStream>(out.ddy + j, ddy, count);
    if (out.dresidual) store_row<kStream>(out.dresidual + j, s, count);
    if (!out.dx) return;
    V t = dz * C::of(by.slope, j) - g * C::of(by.of_g, j) - xhat * C::of(by.along_xhat, j);
    if (Source::kIsCurved) t = fma(s, C::of(by.weight, j), t);
    store_row<kStream>(out.dx + j, (t - C::of(by.along_one, j)) * C::of(of.rstd, j), count);
  });
}

// f(source, first, cols) for pieces of a row, whose dz, s and ddy the source then has; a table's activation computes
// them piece by piece, of q as `q_at` fills it.
template <class S, class C, class FillQ, class F>
PF_INLINE void with_source(const ChannelNormBwdBwd& p, SecondTile<Acc<S>>& tile, const SecondInputs<S>& in,
                           int64_t cols, const Measured<C>& of, FillQ fill_q, F f) {
  typedef Acc<S> T;
  if (for_ending(p.ending, [&](auto act) { f(InRegisters<decltype(act), S>{{act}, in.dy, in.residual}, 0, cols); }))
    return;
  for_pieces_down(cols, [&](int64_t first, int64_t n) {
    const SecondInputs<S> piece = in.from(first);
    normalise_row<S, T, false>(NoActivation{}, piece.x, piece.residual, tile.z, n,
                               Affine<C>{of.mean.from(first), of.scale.from(first), of.offset.from(first)});
    convert_row<S, T, false>(piece.dy, tile.dz, n);
    fill_q(first, n);
    pointwise::for_activation(p.activation,
                              [&](auto act) { bend_row<T>(Bend<decltype(act)>{act}, tile.z, tile.dz, tile.q, n); });
    if (p.is_curved)
      f(FromTile<true, T>{tile.dz, tile.z, tile.q}, first, n);
    else
      f(FromTile<false, T>{tile.dz, tile.z, tile.q}, first, n);
  });
}

template <class T>
void fill_ones(SecondTile<T>& tile, int64_t cols) {
  for (int64_t j = 0; j < cols; j += kLanes<T>) store(tile.q + j, splat<Vec<T>>(1));
}

template <class S, class C>
PF_INLINE void fill_q(SecondTile<Acc<S>>& tile, const SecondInputs<S> in, int64_t cols, const Measured<C>& of,
                      const Changes<C>& by) {
  typedef Vec<Acc<S>> V;
  for_columns_down<Acc<S>>(0, cols, [&](int64_t j, auto count) {
    const V xhat = (load_part(in.x + j, count) - C::of(of.mean, j)) * C::of(of.rstd, j);
    const V g = in.ddx ? load_part(in.ddx + j, count) : V{};
    V q = fma(xhat, C::of(by.slope, j), fma(g, C::of(of.scale, j), C::of(by.fixed, j)));
    if (in.ddresidual) q += load_part(in.ddresidual + j, count);
    store(tile.q + j, q);
  });
}

template <class S>
PF_INLINE SecondInputs<S> inputs_at(const ChannelNormBwdBwd& p, int64_t at) {
  const SecondInputs<S> all = {(const S*)p.dy, (const S*)p.x, (const S*)p.residual, (const S*)p.ddx,
                               (const S*)p.ddresidual};
  return all.from(at);
}

template <class S, bool kStream, class C>
PF_INLINE void finish_second(const ChannelNormBwdBwd& p, SecondTile<Acc<S>>& tile, int64_t at, int64_t cols,
                             const Measured<C>& of, const Changes<C>& by) {
  const SecondInputs<S> in = inputs_at<S>(p, at);
  const SecondOutputs<S> out = SecondOutputs<S>{(S*)p.ddy, (S*)p.dx, (S*)p.dresidual}.from(at);
  with_source(
      p, tile, in, cols, of,
      [&](int64_t first, int64_t n) { fill_q(tile, in.from(first), n, of.from(first), by.from(first)); },
      [&](auto source, int64_t first, int64_t n) {
        second_row<kStream>(source, in.from(first), out.from(first), n, of.from(first), by.from(first));
      });
}

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
      for_blocks_down(plan, begin, end, [&](int64_t sample, int64_t first, int64_t rows, int64_t block) {
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
