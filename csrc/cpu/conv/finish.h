// The end of a convolution, as its sums leave the registers: scale, bias, noise, residual, activation.
#pragma once
#include "../../common/conv.h"
#include "../core/memory.h"
#include "../pointwise/activations.h"

namespace PF_ISA::conv {

struct NoActivation {
  template <class V>
  PF_MEMBER V forward(V x) const {
    return x;
  }
};

// What a channel's sums become before anything is added to them that lies beside the result.
template <class T>
struct Affine {
  T scale, bias;
  PF_MEMBER T operator()(T sums) const { return fma(sums, scale, bias); }
};

template <class S, class Act>
struct Finish {
  typedef Vec<Acc<S>> V;
  const S *scale, *bias, *residual;
  S *to, *preact;
  Act act;
  int64_t scale_step = 0;    // from one sample to the next
  const S* noise = nullptr;  // one for each place
  int64_t noise_step = 0;    // from one sample to the next

  PF_MEMBER Affine<V> of_channel(int64_t sample, int64_t channel) const {
    const S* scale = this->scale ? this->scale + sample * scale_step : nullptr;
    return {splat<V>(scale ? get(scale + channel) : Acc<S>(1)), splat<V>(bias ? get(bias + channel) : Acc<S>(0))};
  }
  PF_MEMBER Affine<V> of_channels(int64_t sample, int64_t channel, int64_t count) const {
    const S* scale = this->scale ? this->scale + sample * scale_step : nullptr;
    return {scale ? load_n(scale + channel, count) : splat<V>(Acc<S>(1)), bias ? load_n(bias + channel, count) : V{}};
  }
  // The first `count` lanes of z are results, `step` elements apart, from `at` on.
  PF_MEMBER void operator()(int64_t at, int64_t step, V z, int64_t count) const {
    if (step == 1 && count == kLanes<Acc<S>>) {
      if (residual) z += load(residual + at);
      if (preact) store(preact + at, z);
      return store(to + at, act.forward(z));
    }
    if (step == 1) {
      if (residual) z += load_n(residual + at, count);
      if (preact) store_n(preact + at, z, count);
      return store_n(to + at, act.forward(z), count);
    }
    if (step == 2 && !residual && !preact) return store_every_other(to + at, act.forward(z), count);
    Acc<S> sums[kLanes<Acc<S>>] __attribute__((aligned(64)));
    store(sums, z);
    if (residual)
      for (int64_t i = 0; i < count; i++) sums[i] += get(residual + at + i * step);
    if (preact)
      for (int64_t i = 0; i < count; i++) put(preact + at + i * step, sums[i]);
    store(sums, act.forward(load(sums)));
    for (int64_t i = 0; i < count; i++) put(to + at + i * step, sums[i]);
  }
};

// Any row of the table, as a call: a kernel of its own for each would be most of this library's code.
template <class V>
__attribute__((noinline)) V activate(const Activation& activation, V x) {
  V y = x;
  pointwise::for_activation(activation, [&](auto act) { y = act.forward(x); });
  return y;
}
struct AnyActivation {
  Activation activation;
  template <class V>
  PF_MEMBER V forward(V x) const {
    return activate(activation, x);
  }
};

// clamp(gain activation(x)). NaN stays NaN.
struct BoundedActivation {
  Activation activation;
  double gain, clamp;
  template <class V>
  PF_MEMBER V forward(V x) const {
    const V most = splat<V>(clamp < 0 ? HUGE_VAL : clamp);
    const V y = activate(activation, x) * splat<V>(gain);
    const V below = select(y > most, most, y);
    return select(below < -most, -most, below);
  }
};

// An activation that is two bounds: ReLU, ReLU6, Hardtanh. NaN stays NaN, and of equals the second argument is taken.
struct Clamp {
  double least, most;
  template <class V>
  PF_MEMBER V forward(V x) const {
    return min_fast(constant<V>(most), max_fast(constant<V>(least), x));
  }
};
constexpr Clamp kNoBounds = {-HUGE_VAL, HUGE_VAL};

template <class Act>
PF_INLINE bool is_clamp(const Act&, Clamp&) {
  return false;
}
PF_INLINE bool is_clamp(const NoActivation&, Clamp& clamp) { return clamp = kNoBounds, true; }
PF_INLINE bool is_clamp(const Clamp& act, Clamp& clamp) { return clamp = act, true; }
PF_INLINE bool is_clamp(const pointwise::Relu&, Clamp& clamp) { return clamp = {0, HUGE_VAL}, true; }
PF_INLINE bool is_clamp(const pointwise::Relu6&, Clamp& clamp) { return clamp = {0, 6}, true; }
PF_INLINE bool is_clamp(const pointwise::Hardtanh& act, Clamp& clamp) {
  return clamp = {act.min_val, act.max_val}, true;
}

// sums[rows, `pitch` apart][count], to be written `row_step` and `step` apart from `at` on; of one channel, or, if they
// are adjacent there (step 1), of channels.
template <class T>
struct SumRows {
  const T* sums;
  int64_t rows, pitch, count;
  int64_t at, row_step, step;
  int64_t channel;  // the first
  bool has_channels;
  int64_t channel_step = 0;  // from the channel of one row to that of the next
  // All are of one sample; place of the first one in it, of rows of channels that of the first row. Read for a style.
  int64_t sample = 0, place = 0;
};

// An end that is a line of arithmetic, no activation or two bounds: kernels have it where their sums are, in registers,
// if S is the type of those; a conversion would be most of their code.
template <class S>
struct PlainFinish {
  typedef Vec<Acc<S>> V;
  Finish<S, NoActivation> finish;
  Clamp clamp;

  PF_MEMBER Affine<V> of_channel(int64_t channel) const { return finish.of_channel(0, channel); }
  PF_MEMBER Affine<V> of_channels(int64_t channel, int64_t count) const {
    return finish.of_channels(0, channel, count);
  }
  PF_MEMBER V bounded(V z) const { return clamp.forward(z); }
  // The first `count` lanes of z, from `at` on.
  PF_MEMBER void operator()(int64_t at, V z, int64_t count) const { store_n(finish.to + at, bounded(z), count); }
};

// Finish as a call: compiled once for an activation, whatever sums them.
template <class S>
struct FinishRows {
  const void* finish;
  static constexpr bool kIsSummedType = sizeof(S) == sizeof(Acc<S>);
  bool is_plain;
  PlainFinish<S> plain;  // where it is
  void (*call)(const void* finish, const SumRows<Acc<S>>& rows);

  template <class Act>
  explicit FinishRows(const Finish<S, Act>& of)
      : finish(&of),
        plain{{of.scale, of.bias, nullptr, of.to, nullptr, {}}, kNoBounds},
        call([](const void* finish, const SumRows<Acc<S>>& rows) {
          constexpr int64_t lanes = kLanes<Acc<S>>;
          const Finish<S, Act> of = *(const Finish<S, Act>*)finish;
          const S* noise = of.noise ? of.noise + rows.sample * of.noise_step + rows.place : nullptr;
          auto write = [&](int64_t r, int64_t i, const auto& affine) __attribute__((always_inline)) {
            const int64_t there = min_of(lanes, rows.count - i);
            auto z = affine(load(rows.sums + r * rows.pitch + i));
            if (noise) z += rows.has_channels ? splat<decltype(z)>(get(noise + r)) : load_n(noise + i, there);
            of(rows.at + r * rows.row_step + i * rows.step, rows.step, z, there);
          };
          if (rows.has_channels) {
            const bool is_plain = !of.residual && !of.preact && !noise && rows.step == 1;
            for (int64_t i = 0; i < rows.count; i += lanes) {
              const auto affine = of.of_channels(rows.sample, rows.channel + i, min_of(lanes, rows.count - i));
              if (is_plain && i + lanes <= rows.count) {
                S* to = of.to + rows.at + i;
                for (int64_t r = 0; r < rows.rows; r++)
                  store(to + r * rows.row_step, of.act.forward(affine(load(rows.sums + r * rows.pitch + i))));
                continue;
              }
              for (int64_t r = 0; r < rows.rows; r++) write(r, i, affine);
            }
            return;
          }
          for (int64_t r = 0; r < rows.rows; r++) {
            const auto affine = of.of_channel(rows.sample, rows.channel + r * rows.channel_step);
            for (int64_t i = 0; i < rows.count; i += lanes) write(r, i, affine);
          }
        }) {
    is_plain =
        is_clamp(of.act, plain.clamp) && kIsSummedType && !of.residual && !of.preact && !of.scale_step && !of.noise;
  }
  void operator()(const SumRows<Acc<S>>& rows) const { call(finish, rows); }
  // Asks for what will be written, `rows` rows of `count` elements: it is here when the sums are.
  PF_MEMBER void prefetch(int64_t at, int64_t row_step, int64_t rows, int64_t count) const {
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < count; i += kLine<S>) __builtin_prefetch(plain.finish.to + at + r * row_step + i, 1);
  }
};

template <class S, class F>
PF_INLINE void for_finish(const Conv& p, F f) {
  auto with = [&](auto act) {
    f(Finish<S, decltype(act)>{(const S*)p.scale, (const S*)p.bias, (const S*)p.residual, (S*)p.y, (S*)p.preact, act,
                               p.has_style ? p.shape.groups * p.shape.out_channels : 0, (const S*)p.style.noise,
                               p.style.noise_step});
  };
  if (p.has_style) return with(BoundedActivation{p.activation, p.style.gain, p.style.clamp});
  if (p.activation.row < 0) return with(NoActivation{});
  Clamp clamp;
  bool has_bounds = false;
  pointwise::for_activation(p.activation, [&](auto act) { has_bounds = is_clamp(act, clamp); });
  if (has_bounds) return with(clamp);
  with(AnyActivation{p.activation});
}

}  // namespace PF_ISA::conv
