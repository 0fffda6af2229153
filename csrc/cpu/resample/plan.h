// The last axis as vectors read it: for each vector of outputs, where the taps of its lanes lie.
#pragma once
#include "../../common/resample.h"
#include "../core/memory.h"

namespace PF_ISA::resample {

namespace {

enum Reach : uint8_t {
  kAdjacent,  // the one tap of the lanes lies side by side: a copy
  kOne,       // the lanes of each tap lie in one vector of the source
  kTwo,       // in two that are adjacent
  kFar,       // in more
};

struct Chunk {
  int32_t at;    // its first tap
  int32_t taps;  // 1 at least; those of the lane that has most
  int32_t run;   // kAdjacent: so many chunks from here on are one copy
  Reach reach;
  bool has_empty;  // a lane has no tap at all: it becomes `fill`
};
static_assert(sizeof(Chunk) <= 16, "resample_plan_bytes");

template <class T>
struct Plan {
  Chunk* chunks;
  int32_t* base;   // [taps]
  int32_t* index;  // [taps, lanes], from base on
  T* weight;       // [taps, lanes]; null: all are 1
  T* there;        // [chunks, lanes]: all bits set where a lane has a tap
  int64_t count, width;
  int taps;  // of every chunk; 0: they differ
};

// A tap that a lane has not, because another has more, repeats its last one, and they share its weight by halves: with
// a weight of 0 an infinity would become NaN. The sum is exact, as halving is.
template <class T>
PF_INLINE T shared_weight(T weight, int tap, int own, int all) {
  const int share = tap - (own - 1), shares = all - own + 1;
  if (share < 0 || shares == 1) return weight;
  for (int i = min_of(share + 1 < shares ? share + 1 : shares - 1, 60); i > 0; i--) weight *= (T)0.5;
  return weight;
}

// The taps of one vector of outputs, before it is known how they are read.
template <class T>
struct Lanes {
  static constexpr int lanes = kLanes<T>;
  const ResampleAxis& axis;
  const int64_t inner;
  int64_t first[lanes], element[lanes], known = 0;  // known: a place of the source that a lane without taps may read
  int32_t number[lanes], taps = 1;
  bool has_empty = false;

  // Lanes past the end are the last element again.
  Lanes(const ResampleAxis& axis, int64_t inner, int64_t begin) : axis(axis), inner(inner) {
    const int64_t last = axis.out * inner - 1;
    for (int i = 0; i < lanes; i++) {
      const int64_t e = min_of(begin + i, last), o = e / inner;
      first[i] = axis.first[o], number[i] = axis.first[o + 1] - axis.first[o], element[i] = e - o * inner;
      if (!number[i]) has_empty = true;
      if (number[i] > taps) taps = number[i];
      if (number[i]) known = axis.index[first[i]] * inner + element[i];
    }
  }
  int64_t entry(int tap, int i) const { return first[i] + min_of(tap, number[i] - 1); }
  int64_t from(int tap, int i) const { return number[i] ? axis.index[entry(tap, i)] * inner + element[i] : known; }
  T weight(int tap, int i) const {
    if (!number[i]) return 0;
    return shared_weight(axis.weight ? ((const T*)axis.weight)[entry(tap, i)] : (T)1, tap, number[i], taps);
  }
  void range(int tap, int64_t* low, int64_t* high) const {
    *low = *high = from(tap, 0);
    for (int i = 1; i < lanes; i++) *low = min_of(*low, from(tap, i)), *high = max_of(*high, from(tap, i));
  }
  // Vectors are read whole: near the end of the source, which has `limit` elements, from further ahead.
  Reach reach(int tap, int64_t limit) const {
    int64_t low, high;
    range(tap, &low, &high);
    for (int vectors = 1; vectors <= 2; vectors++) {
      const int64_t size = vectors * lanes;
      if (sizeof(T) == 4 && limit >= size && high - min_of(low, limit - size) < size) return vectors == 1 ? kOne : kTwo;
    }
    return kFar;
  }
  bool is_adjacent(int64_t limit) const {
    for (int i = 1; i < lanes; i++)
      if (from(0, i) != from(0, 0) + i) return false;
    return taps == 1 && !axis.weight && !has_empty && from(0, 0) + lanes <= limit;
  }
};

// The plan of an axis with `inner` elements a place, few of them, whose source rows have `limit` readable elements.
template <class T>
Plan<T> plan_axis(const ResampleAxis& axis, int64_t inner, int64_t limit, Carver& carver) {
  constexpr int lanes = kLanes<T>;
  typedef typename VecOf<T>::mask Mask;
  Plan<T> plan;
  const int64_t most = max_of(axis.taps, 1);
  const bool is_unit = !axis.weight && axis.taps <= 1;
  plan.width = axis.out * inner, plan.count = ceil_div(plan.width, lanes);
  plan.chunks = carver.take<Chunk>(plan.count);
  plan.base = carver.take<int32_t>(plan.count * most);
  plan.index = carver.take<int32_t>(plan.count * lanes * most);
  plan.weight = is_unit ? nullptr : carver.take<T>(plan.count * lanes * most);
  plan.there = carver.take<T>(plan.count * lanes);
  int32_t at = 0;
  for (int64_t c = 0; c < plan.count; c++) {
    const Lanes<T> of(axis, inner, c * lanes);
    Reach reach = of.is_adjacent(limit) ? kAdjacent : kOne;
    for (int t = 0; t < of.taps && reach != kAdjacent; t++)
      if (of.reach(t, limit) > reach) reach = of.reach(t, limit);
    for (int t = 0; t < of.taps; t++, at++) {
      int64_t low, high;
      of.range(t, &low, &high);
      if (reach == kOne || reach == kTwo) low = min_of(low, limit - (reach == kOne ? 1 : 2) * lanes);
      plan.base[at] = (int32_t)low;
      for (int i = 0; i < lanes; i++) {
        plan.index[at * (int64_t)lanes + i] = (int32_t)(of.from(t, i) - low);
        if (!is_unit) plan.weight[at * (int64_t)lanes + i] = of.weight(t, i);
      }
    }
    Mask there;
    for (int i = 0; i < lanes; i++) there[i] = of.number[i] ? -1 : 0;
    memcpy(plan.there + c * lanes, &there, sizeof(there));
    plan.chunks[c] = Chunk{at - of.taps, of.taps, 1, reach, of.has_empty};
    plan.taps = c && plan.taps != of.taps ? 0 : of.taps;
  }
  for (int64_t c = plan.count - 2; c >= 0; c--) {
    Chunk &chunk = plan.chunks[c], &next = plan.chunks[c + 1];
    if (chunk.reach == kAdjacent && next.reach == kAdjacent && plan.base[next.at] == plan.base[chunk.at] + lanes)
      chunk.run = next.run + 1;
  }
  return plan;
}

}  // namespace

}  // namespace PF_ISA::resample
