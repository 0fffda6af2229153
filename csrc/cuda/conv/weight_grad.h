// The gradient of a depthwise weight: of each channel and tap a sum over all samples and places. Blocks sum parts of
// them into the workspace, which are then added up, in an order that depends on the shape alone.
#pragma once
#include "../core/teams.h"
#include "depthwise.h"

namespace pf::cuda::conv {

namespace {

// Of `count` items those that one of the parts has.
struct Part {
  int64_t begin, end;
};
__device__ __forceinline__ Part part_of(int64_t count, int64_t parts, int64_t part) {
  const int64_t each = (count + parts - 1) / parts, begin = part * each;
  return {begin, begin + each < count ? begin + each : count};
}

// Where a sum of a part goes.
template <class V>
__device__ __forceinline__ V* of_part(V* shares, const Windows& w, int64_t part, int64_t tap, int64_t channel) {
  return shares + (part * w.y.taps * w.x.taps + tap) * w.channels + channel;
}

// ---- kTaps x kTaps taps, stride kDown, adjacent columns: a block sums tiles of one channel, of some samples at a time

template <class T, int kTaps, int kDown>
struct WeightGradOfPlanes : Kernel<kWindowThreads, 3> {
  typedef Acc<T> V;
  typedef PlanePatch<kTaps, 1, kDown> Patch;
  static constexpr int kAll = kTaps * kTaps, kWarps = kWindowThreads / kWarp;

  __device__ void operator()(Windows w, Tiling t, int64_t parts, const T* x, const T* dy, V* shares) const {
    PF_DYNAMIC_SHARED(V, places);
    PF_SHARED(int64_t, of_planes, kMostPlanes);
    PF_SHARED(V, of_warps, kWarps * kAll);
    const int64_t channel = blockIdx.x, of_x = channel / w.share * w.source.channel;
    const Part own_part = part_of((w.outer + t.planes - 1) / t.planes * t.tiles, parts, blockIdx.y);
    const PatchPlace own = own_patch(t);
    V sums[kTaps][kTaps] = {};
    for (int64_t item = own_part.begin; item < own_part.end; item++) {
      const int64_t first = item / t.tiles * t.planes, tile = item % t.tiles;
      const int planes = w.outer - first < t.planes ? (int)(w.outer - first) : t.planes;
      __syncthreads();  // those of the item before are read
      if ((int)threadIdx.x < planes) of_planes[threadIdx.x] = (first + threadIdx.x) * w.source.outer + of_x;
      __syncthreads();
      load_tile<kDown>(places, x, of_planes, planes, t, tile, w.y, w.x, w.source);
      __syncthreads();
      const int64_t row = (tile / t.across * t.groups + own.group) * Patch::kRows;
      const int64_t column = tile % t.across * t.lanes + own.lane;
      if (own.plane >= planes || column >= w.x.result) continue;
      // What lies outside is left out, and not multiplied by zero: x may be infinite there.
      const int64_t rows = w.y.result - row;
      const T* const of_dy = dy + (first + own.plane) * w.result.outer + channel * w.result.channel + row * w.result.y +
                             column * w.result.x;
      V gradient[Patch::kRows];
      PF_UNROLL_ALL
      for (int r = 0; r < Patch::kRows; r++) gradient[r] = r < rows ? widen(of_dy[r * w.result.y]) : V(0);
      const V* const window = places + window_in_tile<kTaps, 1, kDown>(t, own);
      PF_UNROLL_ALL
      for (int j = 0; j < kTaps; j++) PF_UNROLL_ALL
      for (int i = 0; i < Patch::kPlacesY; i++) {
        const V value = window[place_in_window<kDown>(t, i, j)];
        PF_UNROLL_ALL
        for (int r = 0; r < Patch::kRows; r++) {
          const int tap = i - r * kDown;
          if (tap >= 0 && tap < kTaps && r < rows) sums[tap][j] += gradient[r] * value;
        }
      }
    }
    const int lane = (int)threadIdx.x % kWarp, warp = (int)threadIdx.x / kWarp;
    PF_UNROLL_ALL
    for (int tap = 0; tap < kAll; tap++) {
      const V sum = over_warp(sums[tap / kTaps][tap % kTaps], Add());
      if (lane == 0) of_warps[warp * kAll + tap] = sum;
    }
    __syncthreads();
    for (int tap = (int)threadIdx.x; tap < kAll; tap += kWindowThreads) {
      V sum = of_warps[tap];
      PF_UNROLL_ALL
      for (int i = 1; i < kWarps; i++) sum += of_warps[i * kAll + tap];
      *of_part(shares, w, blockIdx.y, tap, channel) = sum;
    }
  }
};

// ---- likewise, adjacent channels: a lane has one, and each warp of the block a row of taps. A thread that had all
// taps kept the places of kTaps rows in registers, more than 168 of them, and ptxas for sm_100 spilled.

template <class T, int kTaps, int kDown>
struct WeightGradOfChannels : Kernel<kTaps * kWarp, kTaps == 7 ? 2 : 768 / (kTaps * kWarp)> {
  typedef Acc<T> V;
  static constexpr int kRun = 4, kPlaces = (kRun - 1) * kDown + kTaps;

  __device__ void operator()(Windows w, int64_t parts, const T* x, const T* dy, V* shares) const {
    const int lane = (int)threadIdx.x % kWarp, tap_y = (int)threadIdx.x / kWarp;
    const int64_t channel = (int64_t)blockIdx.x * kWarp + lane;
    if (channel >= w.channels) return;
    const Part own = part_of(w.outer * w.y.result, parts, blockIdx.y);
    const int columns = (int)w.x.result, width = (int)w.x.source, pad = (int)w.x.pad;
    dy += channel * w.result.channel;
    x += channel / w.share * w.source.channel - pad * w.source.x;
    V sums[kTaps] = {};
    for (int64_t row = own.begin; row < own.end; row++) {
      const int64_t sample = row / w.y.result, y = row % w.y.result, at_y = y * kDown - w.y.pad + tap_y;
      if (at_y < 0 || at_y >= w.y.source) continue;
      const T* of_dy = dy + sample * w.result.outer + y * w.result.y;
      const T* of_x = x + sample * w.source.outer + at_y * w.source.y;
      V of_row[kTaps] = {};  // a sum of sums loses less
      for (int column = 0; column < columns; column += kRun, of_x += kRun * kDown * w.source.x) {
        const int left = columns - column, first = column * kDown - pad;
        V gradient[kRun];
        PF_UNROLL_ALL
        for (int c = 0; c < kRun; c++, of_dy += w.result.x) gradient[c] = c < left ? widen(*of_dy) : V(0);
        const T* from = of_x;
        PF_UNROLL_ALL
        for (int j = 0; j < kPlaces; j++, from += w.source.x) {
          const V value = first + j >= 0 && first + j < width ? widen(*from) : V(0);
          PF_UNROLL_ALL
          for (int c = 0; c < kRun; c++) {
            const int tap = j - c * kDown;
            if (tap >= 0 && tap < kTaps && c < left) of_row[tap] += gradient[c] * value;
          }
        }
      }
      PF_UNROLL_ALL
      for (int tap = 0; tap < kTaps; tap++) sums[tap] += of_row[tap];
    }
    PF_UNROLL_ALL
    for (int tap = 0; tap < kTaps; tap++) *of_part(shares, w, blockIdx.y, tap_y * kTaps + tap, channel) = sums[tap];
  }
};

// ---- any: a block has one tap, of one channel or, as a ColumnTeam, of adjacent ones

template <class T, class Team>
struct WeightGradOfAny : Kernel<Team::kThreads> {
  typedef Acc<T> V;

  __device__ void operator()(Windows w, int64_t parts, const T* x, const T* dy, V* shares) const {
    const int64_t taps = w.y.taps * w.x.taps, tap = (int64_t)blockIdx.x % taps;
    const int64_t channel = (int64_t)blockIdx.x / taps * Team::kTeams + Team::team();
    const Part own = part_of(w.outer * w.y.result, parts, blockIdx.y);
    const int64_t from_y = tap / w.x.taps * w.y.dilation - w.y.pad, from_x = tap % w.x.taps * w.x.dilation - w.x.pad;
    V sum = 0;
    if (channel < w.channels)
      for (int64_t row = own.begin; row < own.end; row++) {
        const int64_t sample = row / w.y.result, y = row % w.y.result, at_y = from_y + y * w.y.down;
        if (at_y < 0 || at_y >= w.y.source) continue;
        const T* const of_dy = dy + sample * w.result.outer + channel * w.result.channel + y * w.result.y;
        const T* const of_x = x + sample * w.source.outer + channel / w.share * w.source.channel + at_y * w.source.y;
        for (int64_t column = Team::lane(); column < w.x.result; column += Team::kLanes) {
          const int64_t at_x = from_x + column * w.x.down;
          if (at_x >= 0 && at_x < w.x.source) sum += widen(of_dy[column * w.result.x]) * widen(of_x[at_x * w.source.x]);
        }
      }
    sum = Team::over(sum, Add());
    if (Team::lane() == 0 && channel < w.channels) *of_part(shares, w, blockIdx.y, tap, channel) = sum;
  }
};

// ---- the sum of the parts, to dweight[channel, y, x] with these strides

template <class T>
struct SumOfParts : Kernel<ColumnTeam::kThreads> {
  typedef Acc<T> V;

  __device__ void operator()(const V* shares, T* dweight, int64_t parts, int64_t channels, int64_t taps, int64_t taps_x,
                             PictureStrides strides) const {
    const int64_t column = (int64_t)blockIdx.x * ColumnTeam::kTeams + ColumnTeam::team(), columns = taps * channels;
    V sum = 0;
    if (column < columns)
      for (int64_t part = ColumnTeam::lane(); part < parts; part += ColumnTeam::kLanes)
        sum += shares[part * columns + column];
    sum = ColumnTeam::over(sum, Add());
    if (ColumnTeam::lane() != 0 || column >= columns) return;
    const int64_t tap = column / channels, channel = column % channels;
    dweight[channel * strides.outer + tap / taps_x * strides.y + tap % taps_x * strides.x] = narrow<T>(sum);
  }
};

template <int... kTaps>
using SquareForms = WindowForms<WindowForm<kTaps, 1, 1>..., WindowForm<kTaps, 1, 2>...>;

template <class Form, class T>
Status launch_parts(const Windows& w, int64_t parts, const T* x, const T* dy, Acc<T>* shares, Stream stream) {
  constexpr int kTaps = Form::kTaps, kDown = Form::kDown;
  if (w.is_channels_last)
    return launch<WeightGradOfChannels<T, kTaps, kDown>>(dim3(blocks_for(w.channels, kWarp), (unsigned)parts), 0,
                                                         stream, w, parts, x, dy, shares);
  const Tiling t = tiling_of<kTaps, 1, kDown>(w.y, w.x, w.outer);
  const size_t bytes = (size_t)(t.planes * t.area) * sizeof(Acc<T>);
  return launch<WeightGradOfPlanes<T, kTaps, kDown>>(dim3(blocks_for(w.channels, 1), (unsigned)parts), bytes, stream, w,
                                                     t, parts, x, dy, shares);
}

template <class Team, class T>
Status launch_any_parts(const Windows& w, int64_t parts, const T* x, const T* dy, Acc<T>* shares, Stream stream) {
  const int64_t teams = (w.channels + Team::kTeams - 1) / Team::kTeams;
  return launch<WeightGradOfAny<T, Team>>(dim3(blocks_for(teams * w.y.taps * w.x.taps, 1), (unsigned)parts), 0, stream,
                                          w, parts, x, dy, shares);
}

}  // namespace

Status weight_grad(const Conv& p, void* stream) {
  const ConvShape& s = p.shape;
  if (const Status status = refused(s); status.error) return status;
  Windows w = forward_windows(p);
  w.is_channels_last = depthwise_is_channels_last(p.x_stride);
  const int64_t parts = depthwise_parts(p), taps = w.y.taps * w.x.taps;
  if (!(w.channels && taps)) return {nullptr};
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const T *const x = (const T*)p.x, *const dy = (const T*)p.y;
    Acc<T>* const shares = (Acc<T>*)p.workspace;
    Status status = {nullptr};
    bool is_done = false;
    if constexpr (sizeof(T) < 8)
      for_window_form(SquareForms<3, 5, 7>(), w.x, [&](auto form) {
        using Form = decltype(form);
        if (!Form::is_of(w.y) || !w.outer) return;
        status = launch_parts<Form>(w, parts, x, dy, shares, (Stream)stream), is_done = true;
      });
    if (!is_done)
      status = w.is_channels_last ? launch_any_parts<ColumnTeam>(w, parts, x, dy, shares, (Stream)stream)
                                  : launch_any_parts<RowTeam<kWindowThreads>>(w, parts, x, dy, shares, (Stream)stream);
    if (status.error) return status;
    return launch<SumOfParts<T>>(dim3(blocks_for(taps * w.channels, ColumnTeam::kTeams)), 0, (Stream)stream,
                                 (const Acc<T>*)shares, (T*)p.weight, parts, w.channels, taps, w.x.taps,
                                 picture(p.weight_stride));
  });
}

}  // namespace pf::cuda::conv
