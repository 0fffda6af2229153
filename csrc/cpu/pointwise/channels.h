// A value for each channel of a dense tensor (Channels in common/pointwise.h): spread over the elements, as a bias or
// PReLU's slope is, and summed over them, as their gradients are.
#pragma once
#include "../core/memory.h"
#include "tile.h"

namespace PF_ISA::pointwise {

namespace {

// The values of the channels of elements [first, first + count), an element each: where they lie, or in `spread`.
template <class A>
const A* by_element(const A* values, const Channels& of, int64_t first, int64_t count, Tile<A>& spread) {
  constexpr int lanes = kLanes<A>;
  int64_t c = first / of.inner % of.channels;
  A* at = spread.at;
  if (of.inner > 1) {  // a run of one value may be written over by the next where it ends within a vector
    int64_t run = of.inner - first % of.inner;
    for (int64_t i = 0; i < count; i += run, run = of.inner) {
      run = min_of(run, count - i);
      const Vec<A> value = splat<Vec<A>>(values[c]);
      for (int64_t j = 0; j < run; j += lanes) store(at + i + j, value);
      if (++c == of.channels) c = 0;
    }
    return at;
  }
  if (c + round_up(count, lanes) <= of.channels) return values + c;
  if (of.channels < lanes) {
    for (int64_t i = 0; i < count; i++) {
      at[i] = values[c];
      if (++c == of.channels) c = 0;
    }
    return at;
  }
  for (int64_t i = 0, run; i < count; i += run, c = 0) {
    run = min_of(of.channels - c, count - i);
    load_tile(values + c, run, at + i);
  }
  return at;
}

// Sums by channel of one part of the memory. Of the last rows in the arithmetic type, of all before in double: a float
// that grows would drop the digits of what is added to it.
template <class A>
struct ChannelSums {
  static constexpr int kRows = 128;
  Channels of;
  double* totals;  // [channels]
  A* recent;       // [channels]
  int64_t since = 0;

  ChannelSums(const Channels& of, void* workspace)
      : of(of), totals((double*)workspace), recent((A*)(totals + of.channels)) {
    static_assert(sizeof(double) + sizeof(A) <= kBytesOfChannelSums, "fits into what was asked for");
    for (int64_t c = 0; c < of.channels; c++) totals[c] = 0, recent[c] = 0;
  }

  void add(const A* tile, int64_t first, int64_t count) {
    constexpr int lanes = kLanes<A>;
    int64_t c = first / of.inner % of.channels;
    if (of.inner > 1) {
      int64_t run = of.inner - first % of.inner;
      for (int64_t i = 0; i < count; i += run, run = of.inner) {
        run = min_of(run, count - i);
        Vec<A> sum{};
        for_vectors<A>(run, [&](int64_t j, int64_t n) { sum += load_n(tile + i + j, n); });
        totals[c] += reduce_add(sum);
        if (++c == of.channels) c = 0;
      }
      return;
    }
    if (of.channels < lanes) {
      for (int64_t i = 0; i < count; i++) {
        recent[c] += tile[i];
        if (++c == of.channels) c = 0;
      }
    } else {
      for (int64_t i = 0, run; i < count; i += run, c = 0) {
        run = min_of(of.channels - c, count - i);
        A* sums = recent + c;
        for_vectors<A>(
            run, [&](int64_t j, int64_t n) { store_n(sums + j, load_n(sums + j, n) + load_n(tile + i + j, n), n); });
      }
    }
    since += count;
    if (since >= kRows * of.channels) done();
  }

  void done() {
    for (int64_t c = 0; c < of.channels; c++) totals[c] += recent[c], recent[c] = 0;
    since = 0;
  }
};

// body(begin, end, sums) over parts of [0, n) on threads, cut at tiles; then result [channels] is what was added to the
// sums of all of them, the same whatever the number of threads.
template <class A, class Body>
PF_INLINE void summed_by_channel(int64_t n, const Channels& of, void* workspace, A* result, int threads, Body body) {
  const int64_t parts = channel_parts(n, of.channels), step = round_up(ceil_div(n, parts), kTile);
  const int64_t bytes = of.channels * kBytesOfChannelSums;
  parallel_tasks(parts, threads, [&](int64_t part, int) {
    ChannelSums<A> sums(of, (char*)workspace + part * bytes);
    body(min_of(n, part * step), min_of(n, (part + 1) * step), sums);
    sums.done();
  });
  double* totals = (double*)workspace;
  for (int64_t part = 1; part < parts; part++) {
    const double* others = (const double*)((const char*)workspace + part * bytes);
    for (int64_t c = 0; c < of.channels; c++) totals[c] += others[c];
  }
  for (int64_t c = 0; c < of.channels; c++) result[c] = (A)totals[c];
}

}  // namespace

}  // namespace PF_ISA::pointwise
