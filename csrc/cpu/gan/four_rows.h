// Four rows of the result at a time, of one channel and a filter that is a product: what is looked up for a row, and
// the wait for one sum's additions, is shared by four. Narrow pictures are bound by these.
#pragma once
#include "../core/columns.h"
#include "stage.h"

namespace PF_ISA::gan {

namespace {

constexpr int kTogether = 4;
// Wider rows fill the processor by themselves: four at a time take 1.15 of their time. 128 planes of 64x64 filtered to
// 65x65, Zen 4, one thread: 314 us, row by row 1076.
constexpr int64_t kNarrow = 80;

// Of each row of the result the rows of the source that its filter meets, and their weights, `up` apart.
template <class S, int kCount>
struct FourSums {
  const S* x[kTogether][kCount];
  const Acc<S>* weight[kTogether];
  int64_t up;
};

// Places [j, j + 2 vectors) of the lines, of which `left` are in the picture.
template <class S, int kStep, int kCount, class Count>
PF_INLINE void sum_four_places(Acc<S>* lines, int64_t line, int64_t phase, const FourSums<S, kCount>& of, int64_t j,
                               Count left) {
  typedef Vec<Acc<S>> V;
  constexpr int lanes = kLanes<Acc<S>>;
  PF_UNROLL
  for (int r = 0; r < kTogether; r++) {
    V sum[2] = {};
    PF_UNROLL
    for (int t = 0; t < kCount; t++) {
      const V weight = splat<V>(of.weight[r][t * of.up]);
      PF_UNROLL
      for (int i = 0; i < 2; i++) {
        const S* x = of.x[r][t] + j + i * lanes;
        if constexpr (__is_same(Count, WholeVector))
          sum[i] = fma(weight, load(x), sum[i]);
        else if (left > i * lanes)
          sum[i] = fma(weight, load_part(x, left - i * lanes), sum[i]);
      }
    }
    take_apart<kStep>(sum);
    Acc<S>* to = lines + r * line + j / kStep;
    store(to, sum[0]), store(to + (kStep == 2 ? phase : lanes), sum[1]);
  }
}

template <class S, int kStep, int kCount>
void sum_four(Acc<S>* lines, int64_t line, int64_t phase, const FourSums<S, kCount>& of, int64_t n) {
  constexpr int lanes = kLanes<Acc<S>> * 2;
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) sum_four_places<S, kStep, kCount>(lines, line, phase, of, j, WholeVector{});
  if (j < n) sum_four_places<S, kStep, kCount>(lines, line, phase, of, j, n - j);
}

// The lines of rows [o, o + 4) of the result from the plane x; false where the filters meet another number of rows than
// this is compiled for. Beyond the picture they meet `zeros`.
template <int kStep, int kCount, class S, class T>
bool sum_four_of(const Stage<T>& stage, T* lines, int64_t o, const S* x, const S* zeros) {
  const GanFilter& f = stage.f;
  FourSums<S, kCount> of;
  of.up = f.up_y;
  for (int r = 0; r < kTogether; r++) {
    const Meeting down = meeting(o + r, f.up_y, f.down_y, f.pad_y, f.taps_y);
    if (down.count != kCount) return false;
    of.weight[r] = stage.column + down.tap;
    for (int t = 0; t < kCount; t++) {
      const int64_t row = down.place + t;
      of.x[r][t] = row >= 0 && row < f.in_y ? x + row * f.in_x + stage.from : zeros;
    }
  }
  sum_four<S, kStep, kCount>(lines + (stage.from - stage.low) / kStep, stage.line, stage.phase, of, stage.count);
  return true;
}
template <class S, class T>
bool sum_four_rows(const Stage<T>& stage, T* lines, int64_t o, const S* x, const S* zeros) {
  const bool is_two = stage.f.taps_y <= 2 * stage.f.up_y;
  if (stage.step == 1)
    return is_two ? sum_four_of<1, 2>(stage, lines, o, x, zeros) : sum_four_of<1, 4>(stage, lines, o, x, zeros);
  if (stage.step == 2)
    return is_two ? sum_four_of<2, 2>(stage, lines, o, x, zeros) : sum_four_of<2, 4>(stage, lines, o, x, zeros);
  return false;
}

template <class To, int kPeriod, int kTaps, class T, class Count>
PF_INLINE void filter_four_places(const Entries<T>& e, const T* lines, int64_t line, To* y, int64_t stride, int64_t q,
                                  Count left) {
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  V sum[kTogether][kPeriod];
  PF_UNROLL
  for (int r = 0; r < kPeriod; r++) {
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) {
      const V weight = splat<V>(e.weight[r * kTaps + t]);
      const T* from = lines + e.offset[r * kTaps + t] + q;
      PF_UNROLL
      for (int i = 0; i < kTogether; i++)
        sum[i][r] = t == 0 ? weight * load(from + i * line) : fma(weight, load(from + i * line), sum[i][r]);
    }
  }
  PF_UNROLL
  for (int i = 0; i < kTogether; i++) {
    put_in_turns<kPeriod>(sum[i]);
    To* to = y + i * stride + q * kPeriod;
    PF_UNROLL
    for (int r = 0; r < kPeriod; r++) {
      if constexpr (__is_same(Count, WholeVector))
        store(to + r * lanes, sum[i][r]);
      else if (left > r * lanes)
        store_part(to + r * lanes, sum[i][r], left - r * lanes);
    }
  }
}

template <class To, int kPeriod, int kTaps, class T>
void filter_four(const Entries<T>& e, const T* lines, int64_t line, To* y, int64_t out) {
  constexpr int lanes = kLanes<T>;
  int64_t q = 0;
  for (; (q + lanes) * kPeriod <= out; q += lanes)
    filter_four_places<To, kPeriod, kTaps>(e, lines, line, y, out, q, WholeVector{});
  if (q * kPeriod < out) filter_four_places<To, kPeriod, kTaps>(e, lines, line, y, out, q, out - q * kPeriod);
}

// Four rows of the result, one behind the other, from their lines; false where the general way has to be taken.
template <class To, class T>
bool filter_four_rows(const Stage<T>& stage, const T* lines, To* y) {
  const Entries<T> e{stage.first, stage.offset, stage.weight};
  const int64_t line = stage.line, out = stage.f.out_x;
  if (stage.period == 1 && stage.taps == 4) return filter_four<To, 1, 4>(e, lines, line, y, out), true;
  if (stage.period == 2 && stage.taps == 2) return filter_four<To, 2, 2>(e, lines, line, y, out), true;
  return false;
}

}  // namespace

}  // namespace PF_ISA::gan
