// One filter on its way over a picture. For each row of the result the rows that its taps meet are summed into a line,
// which stays in the first cache; from it the row is filtered. Only taps that meet a place are looked at, none that
// meets a zero between places.
//
// Along a row, the taps that meet places are the same every `period` results, `step` places further on. Lines are kept
// apart by step, place p at [p % step][p / step], so that the same tap of results that are a period apart lies side by
// side, and results are put in order as they are stored. A line is zero where the picture is padded.
#pragma once
#include "../../common/gan.h"
#include "../core/memory.h"
#include "../simd/transpose.h"

namespace PF_ISA::gan {

namespace {

// The taps that result o of an axis is a sum of: tap + up * t meets place + t, for t below count.
struct Meeting {
  int64_t tap, place, count;
};
PF_INLINE int64_t floor_of(int64_t a, int64_t b) {  // rows are short: a division takes as long as a tenth of one
  return b & (b - 1) ? gan_floor(a, b) : a >> __builtin_ctzll((uint64_t)b);
}
PF_INLINE Meeting meeting(int64_t o, int64_t up, int64_t down, int64_t pad, int64_t taps) {
  const int64_t from = o * down - pad, place = -floor_of(-from, up), tap = place * up - from;
  return {tap, place, tap < taps ? floor_of(taps - tap + up - 1, up) : 0};
}

template <int kFirst, int kCount>
struct EveryOther {
  static constexpr int lane(int i) { return kFirst + 2 * i; }
};
template <int kFirst, int kCount>
struct InTurns {
  static constexpr int lane(int i) { return kFirst + i / 2 + (i & 1 ? kCount : 0); }
};

// Vectors of adjacent places to vectors of those that are kStep apart; kStep is 1, 2 or 4.
template <int kStep, class V>
PF_INLINE void take_apart(V* x) {
  constexpr int lanes = kLanesOf<V>;
  if constexpr (kStep == 2) {
    const V even = shuffle<EveryOther<0, lanes>>(x[0], x[1]), odd = shuffle<EveryOther<1, lanes>>(x[0], x[1]);
    x[0] = even, x[1] = odd;
  } else if constexpr (kStep == 4) {
    take_apart<2>(x), take_apart<2>(x + 2);
    const V odd = x[1];
    x[1] = x[2], x[2] = odd;
    take_apart<2>(x), take_apart<2>(x + 2);
    const V two = x[1];
    x[1] = x[2], x[2] = two;
  }
}
// The other way.
template <int kPeriod, class V>
PF_INLINE void put_in_turns(V* x) {
  constexpr int lanes = kLanesOf<V>;
  if constexpr (kPeriod == 2) {
    const V low = shuffle<InTurns<0, lanes>>(x[0], x[1]), high = shuffle<InTurns<lanes / 2, lanes>>(x[0], x[1]);
    x[0] = low, x[1] = high;
  } else if constexpr (kPeriod == 4) {
    V even[2] = {x[0], x[2]}, odd[2] = {x[1], x[3]};
    put_in_turns<2>(even), put_in_turns<2>(odd);
    for (int i = 0; i < 2; i++) x[2 * i] = even[i], x[2 * i + 1] = odd[i], put_in_turns<2>(x + 2 * i);
  }
}

// ---- rows to a line -------------------------------------------------------------------------------------------------

// Places [j, j + kVectors vectors) of a line, of which `left` are in the picture. kCount 0: `count` rows.
template <class S, int kStep, int kVectors, int kCount, bool kWhole>
PF_INLINE void sum_places(Acc<S>* line, int64_t phase, const S* const* rows, const Acc<S>* weights, int count,
                          int64_t j, int64_t left, Vec<Acc<S>> init) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  V sum[kVectors];
  PF_UNROLL
  for (int i = 0; i < kVectors; i++) {
    sum[i] = init;
    if constexpr (!kWhole) {
      T buffer[lanes] __attribute__((aligned(64)));
      *(V*)buffer = init;
      sum[i] = load_n(buffer, max_of(0, left - i * lanes));
    }
  }
  PF_UNROLL
  for (int r = 0; r < (kCount ? kCount : count); r++) {
    const V weight = splat<V>(weights[r]);
    PF_UNROLL
    for (int i = 0; i < kVectors; i++) {
      if constexpr (kWhole)
        sum[i] = fma(weight, load(rows[r] + j + i * lanes), sum[i]);
      else if (left > i * lanes)
        sum[i] = fma(weight, load_n(rows[r] + j + i * lanes, left - i * lanes), sum[i]);
    }
  }
  PF_UNROLL
  for (int i = 0; i < kVectors; i += kStep) {
    take_apart<kStep>(sum + i);
    PF_UNROLL
    for (int s = 0; s < kStep; s++) store(line + s * phase + (j + i * lanes) / kStep, sum[i + s]);
  }
}

template <class S, int kStep, int kCount>
void sum_rows(Acc<S>* line, int64_t phase, const S* const* rows, const Acc<S>* weights, int count, int64_t n,
              Acc<S> init) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>;
  const Vec<T> start = splat<Vec<T>>(init);
  int64_t j = 0;
  for (; j + 4 * lanes <= n; j += 4 * lanes)
    sum_places<S, kStep, 4, kCount, true>(line, phase, rows, weights, count, j, 0, start);
  for (; j + kStep * lanes <= n; j += kStep * lanes)
    sum_places<S, kStep, kStep, kCount, true>(line, phase, rows, weights, count, j, 0, start);
  if (j < n) sum_places<S, kStep, kStep, kCount, false>(line, phase, rows, weights, count, j, n - j, start);
}

// Any step: an element at a time.
template <class S>
void sum_rows_apart(Acc<S>* line, int64_t phase, int64_t step, const S* const* rows, const Acc<S>* weights, int count,
                    int64_t n, Acc<S> init) {
  for (int64_t j = 0; j < n; j++) {
    Acc<S> sum = init;
    for (int r = 0; r < count; r++) sum += weights[r] * get(rows[r] + j);
    line[j % step * phase + j / step] = sum;
  }
}

template <class S, int kStep>
PF_INLINE void sum_some_rows(Acc<S>* line, int64_t phase, const S* const* rows, const Acc<S>* weights, int count,
                             int64_t n, Acc<S> init) {
  switch (count) {
    case 1: return sum_rows<S, kStep, 1>(line, phase, rows, weights, count, n, init);
    case 2: return sum_rows<S, kStep, 2>(line, phase, rows, weights, count, n, init);
    case 4: return sum_rows<S, kStep, 4>(line, phase, rows, weights, count, n, init);
    case 6: return sum_rows<S, kStep, 6>(line, phase, rows, weights, count, n, init);
    default: return sum_rows<S, kStep, 0>(line, phase, rows, weights, count, n, init);
  }
}

// n places of `channels` elements, `stride` apart in the rows and `block` apart in the line.
template <class S>
void sum_channels(Acc<S>* line, int64_t block, const S* const* rows, int64_t stride, const Acc<S>* weights, int count,
                  int64_t n, int64_t channels, const S* bias, Acc<S> total) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  for (int64_t j = 0; j < n; j++) {
    int64_t c = 0;
    for (; c + lanes <= channels; c += lanes) {
      V sum = bias ? load(bias + c) * total : V{};
      for (int r = 0; r < count; r++) sum = fma(splat<V>(weights[r]), load(rows[r] + j * stride + c), sum);
      store(line + j * block + c, sum);
    }
    if (c < channels) {
      V sum = bias ? load_n(bias + c, channels - c) * total : V{};
      for (int r = 0; r < count; r++)
        sum = fma(splat<V>(weights[r]), load_n(rows[r] + j * stride + c, channels - c), sum);
      store_n(line + j * block + c, sum, channels - c);
    }
  }
}

// ---- a line to a row ------------------------------------------------------------------------------------------------

// The taps of one filter along a row: entries [first[r], first[r + 1]) are of results that are r past a period's begin.
template <class T>
struct Entries {
  const int32_t* first;
  const int32_t* offset;  // from the line's begin, at the period's
  const T* weight;
};

template <class To, int kPeriod, int kVectors, int kTaps, bool kWhole, class T, class F>
PF_INLINE void filter_places(const Entries<T>& e, const T* line, To* y, int64_t q, int64_t left, F then) {
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  V sum[kVectors][kPeriod];
  PF_UNROLL
  for (int r = 0; r < kPeriod; r++) {
    const int32_t first = e.first[r], count = kTaps ? kTaps : e.first[r + 1] - first;
    PF_UNROLL
    for (int i = 0; i < kVectors; i++) sum[i][r] = V{};
    PF_UNROLL
    for (int t = 0; t < (kTaps ? kTaps : count); t++) {
      const V weight = splat<V>(e.weight[first + t]);
      const T* from = line + e.offset[first + t] + q;
      PF_UNROLL
      for (int i = 0; i < kVectors; i++)
        sum[i][r] = kTaps && t == 0 ? weight * load(from + i * lanes) : fma(weight, load(from + i * lanes), sum[i][r]);
    }
  }
  PF_UNROLL
  for (int i = 0; i < kVectors; i++) {
    put_in_turns<kPeriod>(sum[i]);
    To* to = y + (q + i * lanes) * kPeriod;
    PF_UNROLL
    for (int r = 0; r < kPeriod; r++) {
      const V value = then(sum[i][r], to + r * lanes - y, left - r * lanes);
      if constexpr (kWhole)
        store(to + r * lanes, value);
      else if (left > r * lanes)
        store_n(to + r * lanes, value, left - r * lanes);
    }
  }
}

template <class To, int kPeriod, int kTaps, class T, class F>
void filter_row(const Entries<T>& e, const T* line, To* y, int64_t out, F then) {
  constexpr int lanes = kLanes<T>, vectors = 4 / kPeriod;
  int64_t q = 0;
  for (; (q + vectors * lanes) * kPeriod <= out; q += vectors * lanes)
    filter_places<To, kPeriod, vectors, kTaps, true>(e, line, y, q, 4 * lanes, then);
  for (; (q + lanes) * kPeriod <= out; q += lanes)
    filter_places<To, kPeriod, 1, kTaps, true>(e, line, y, q, 4 * lanes, then);
  if (q * kPeriod < out) filter_places<To, kPeriod, 1, kTaps, false>(e, line, y, q, out - q * kPeriod, then);
}

// Any period: a result at a time.
template <class To, class T>
void filter_row_apart(const Entries<T>& e, int64_t period, const T* line, To* y, int64_t out) {
  for (int64_t o = 0; o < out; o++) {
    const int64_t q = o / period, r = o % period;
    T sum = 0;
    for (int32_t i = e.first[r]; i < e.first[r + 1]; i++) sum += e.weight[i] * line[e.offset[i] + q];
    put(y + o, sum);
  }
}

// Places of `channels` elements; `step` apart in the line and `stride` in the row where the same taps meet them.
template <class To, int kTaps, class T>
void filter_channels(const Entries<T>& e, int64_t period, int64_t step, const T* line, To* y, int64_t stride,
                     int64_t out, int64_t channels) {
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  for (int64_t r = 0; r < period; r++) {
    const int32_t *offset = e.offset + e.first[r], count = e.first[r + 1] - e.first[r];
    const T* weight = e.weight + e.first[r];
    V fixed[kTaps ? kTaps : 1];
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) fixed[t] = splat<V>(weight[t]);
    const T* at = line;
    for (int64_t o = r; o < out; o += period, at += step) {
      To* to = y + o * stride;
      auto sum_at = [&](int64_t c) {
        V sum{};
        PF_UNROLL
        for (int t = 0; t < (kTaps ? kTaps : count); t++) {
          const V x = load(at + offset[t] + c), w = kTaps ? fixed[kTaps ? t : 0] : splat<V>(weight[t]);
          sum = kTaps && t == 0 ? w * x : fma(w, x, sum);
        }
        return sum;
      };
      int64_t c = 0;
      for (; c + 2 * lanes <= channels; c += 2 * lanes) {
        const V low = sum_at(c), high = sum_at(c + lanes);
        store(to + c, low), store(to + c + lanes, high);
      }
      for (; c + lanes <= channels; c += lanes) store(to + c, sum_at(c));
      for (; c < channels; c += lanes) store_n(to + c, sum_at(c), channels - c);
    }
  }
}

// ---- both -----------------------------------------------------------------------------------------------------------

template <class T>
struct Stage {
  GanFilter f;
  bool is_product;  // of a column and a row: one line does
  T *column, *row;  // taps as they meet places, in order
  int64_t block, period, step, low, from, count, phase, line;
  int most;  // lines of a row of the result
  int taps;  // of every phase; 0: they differ
  int32_t *first, *offset;
  T* weight;

  Stage(const GanFilter& filter, int64_t block, Carver& carver) : f(filter), block(block) {
    column = carver.take<T>(f.taps_y), row = carver.take<T>(f.taps_x);
    is_product = f.is_separable ? take_one() : take_product();
    const int64_t divisor = gan_divisor(f.up_x, f.down_x);
    period = f.up_x / divisor, step = f.down_x / divisor;
    const int64_t apart = block > 1 ? 1 : step;
    low = gan_floor(gan_low(f), apart) * apart;
    from = max_of(low, 0), count = max_of(0, min_of(f.in_x, gan_low(f) + gan_span(f)) - from);
    line = gan_line(f, block), phase = line / apart, most = is_product ? 1 : (int)gan_line_count(f);
    tabulate(apart, carver);
  }
  // Elements of all lines of a row of the result.
  int64_t lines() const { return most * line; }

  T tap(int64_t y, int64_t x) const {
    if (!f.is_flipped) y = f.taps_y - 1 - y, x = f.taps_x - 1 - x;
    return (T)f.taps[y * f.taps_x + x];
  }
  bool take_one() {
    for (int64_t k = 0; k < f.taps_x; k++) row[k] = (T)f.taps[f.is_flipped ? k : f.taps_x - 1 - k];
    for (int64_t k = 0; k < f.taps_y; k++) column[k] = row[k] * (T)f.gain;
    return true;
  }
  // Is the filter a product, but for what rounding its taps has changed?
  bool take_product() {
    int64_t pivot_y = 0, pivot_x = 0;
    for (int64_t y = 0; y < f.taps_y; y++)
      for (int64_t x = 0; x < f.taps_x; x++)
        if (fabs((double)tap(y, x)) > fabs((double)tap(pivot_y, pivot_x))) pivot_y = y, pivot_x = x;
    const T pivot = tap(pivot_y, pivot_x);
    for (int64_t y = 0; y < f.taps_y; y++) column[y] = tap(y, pivot_x);
    for (int64_t x = 0; x < f.taps_x; x++) row[x] = pivot ? tap(pivot_y, x) / pivot : 0;
    const double few = sizeof(T) == 8 ? 4.4e-16 : 2.4e-7;
    for (int64_t y = 0; y < f.taps_y; y++)
      for (int64_t x = 0; x < f.taps_x; x++) {
        const double wanted = tap(y, x), found = (double)column[y] * (double)row[x];
        if (!(fabs(found - wanted) <= few * fabs(wanted))) return false;
      }
    for (int64_t y = 0; y < f.taps_y; y++) column[y] *= (T)f.gain;
    return true;
  }
  void tabulate(int64_t apart, Carver& carver) {
    const int64_t groups = is_product ? 1 : f.up_y,
                  entries = (f.taps_x + f.up_x) * (is_product ? 1 : f.taps_y + f.up_y);
    first = carver.take<int32_t>(groups * period + 1);
    offset = carver.take<int32_t>(entries), weight = carver.take<T>(entries);
    int32_t at = 0;
    for (int64_t g = 0; g < groups; g++)  // of the rows of the result whose first tap to meet a place is g
      for (int64_t r = 0; r < period; r++) {
        first[g * period + r] = at;
        const Meeting across = meeting(r, f.up_x, f.down_x, f.pad_x, f.taps_x);
        for (int64_t t = 0, y = g; t < most && (is_product || y < f.taps_y); t++, y += f.up_y)
          for (int64_t u = 0; u < across.count; u++, at++) {
            const int64_t x = across.tap + f.up_x * u, place = across.place + u - low;
            offset[at] = (int32_t)(t * line + (block > 1 ? place * block : place % apart * phase + place / apart));
            weight[at] = is_product ? row[x] : tap(y, x) * (T)f.gain;
          }
        const int here = at - first[g * period + r];
        taps = (!g && !r) || here == taps ? here : 0;
      }
    first[groups * period] = at;
  }

  // The lines of row o of the result. row_at(i): place 0 of row i of the source, whose places are `stride` apart; bias:
  // of each channel, or null.
  template <class S, class RowAt>
  void sum(T* to, int64_t o, RowAt row_at, int64_t stride, int64_t channels, const S* bias) const {
    const Meeting down = meeting(o, f.up_y, f.down_y, f.pad_y, f.taps_y);
    const int64_t begin = max_of(0, -down.place), end = min_of(down.count, f.in_y - down.place);
    if (is_product) {
      const S* rows[kGanMostTaps];
      T weights[kGanMostTaps], total = 0;
      int n = 0;
      for (int64_t t = begin; t < end; t++, n++) {
        rows[n] = row_at(down.place + t) + from * stride, weights[n] = column[down.tap + f.up_y * t];
        total += weights[n];
      }
      return sum_into(to, rows, weights, n, total, stride, channels, bias);
    }
    for (int64_t t = 0; t < most; t++) {
      const bool is_there = t >= begin && t < end;
      const S* source = is_there ? row_at(down.place + t) + from * stride : nullptr;
      const T one = 1;
      sum_into(to + t * line, &source, &one, is_there, (T)is_there, stride, channels, bias);
    }
  }
  template <class S>
  void sum_into(T* to, const S* const* rows, const T* weights, int n, T total, int64_t stride, int64_t channels,
                const S* bias) const {
    if (block > 1) {
      to += (from - low) * block;
      if (stride == block && !bias) return sum_some_rows<S, 1>(to, 0, rows, weights, n, count * block, 0);
      return sum_channels<S>(to, block, rows, stride, weights, n, count, channels, bias, total);
    }
    const T init = bias ? get(bias) * total : 0;
    to += (from - low) / step;
    switch (step) {
      case 1: return sum_some_rows<S, 1>(to, phase, rows, weights, n, count, init);
      case 2: return sum_some_rows<S, 2>(to, phase, rows, weights, n, count, init);
      case 4: return sum_some_rows<S, 4>(to, phase, rows, weights, n, count, init);
      default: return sum_rows_apart<S>(to, phase, step, rows, weights, n, count, init);
    }
  }

  // Row o of the result, from its lines; its places are `stride` apart.
  template <class To, class F>
  void filter(To* y, int64_t o, const T* from_lines, int64_t stride, int64_t channels, F then) const {
    Entries<T> e{first, offset, weight};
    if (!is_product) {
      const int64_t group = meeting(o, f.up_y, f.down_y, f.pad_y, f.taps_y).tap;
      e.first += group * period;
    }
    if (block > 1) return across_channels<To>(e, y, from_lines, stride, channels, then);
    switch (period) {
      case 1: return some_taps<To, 1>(e, y, from_lines, then);
      case 2: return some_taps<To, 2>(e, y, from_lines, then);
      case 4: return some_taps<To, 4>(e, y, from_lines, then);
      default: filter_row_apart<To>(e, period, from_lines, y, f.out_x); return finish(y, f.out_x, then);
    }
  }
  template <class To, int kPeriod, class F>
  void some_taps(const Entries<T>& e, To* y, const T* from_lines, F then) const {
    switch (taps) {
      case 2: return filter_row<To, kPeriod, 2>(e, from_lines, y, f.out_x, then);
      case 4: return filter_row<To, kPeriod, 4>(e, from_lines, y, f.out_x, then);
      case 6: return filter_row<To, kPeriod, 6>(e, from_lines, y, f.out_x, then);
      default: return filter_row<To, kPeriod, 0>(e, from_lines, y, f.out_x, then);
    }
  }
  template <class To, class F>
  void across_channels(const Entries<T>& e, To* y, const T* from_lines, int64_t stride, int64_t channels,
                       F then) const {
    switch (taps) {
      case 2: filter_channels<To, 2>(e, period, step * block, from_lines, y, stride, f.out_x, channels); break;
      case 4: filter_channels<To, 4>(e, period, step * block, from_lines, y, stride, f.out_x, channels); break;
      default: filter_channels<To, 0>(e, period, step * block, from_lines, y, stride, f.out_x, channels);
    }
    if (stride == block) finish(y, f.out_x * block, then);  // a row of the middle
  }
  // `then` of what was stored without it.
  template <class To, class F>
  static void finish(To* y, int64_t n, F then) {
    if constexpr (F::is_something) {
      constexpr int lanes = kLanes<T>;
      for (int64_t j = 0; j < n; j += lanes) store_n(y + j, then(load_n(y + j, n - j), j, n - j), n - j);
    }
  }
};

struct AsItIs {
  static constexpr bool is_something = false;
  template <class V>
  V operator()(V x, int64_t, int64_t) {
    return x;
  }
};

}  // namespace

}  // namespace PF_ISA::gan
