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
#include "channel_forward.h"

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

// Of four rows side by side, a row shorter than a page, the processor's prefetch sees little: sums of tensors of 8 MB
// took 0.89 ms on one core of Zen 5 without this, 0.61 with it.
constexpr int64_t kAheadBytes = 4096;
template <class S>
PF_INLINE void ask_ahead(const S* p) {
  __builtin_prefetch((const char*)p + kAheadBytes);
}

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

}  // namespace

}  // namespace PF_ISA::norm
