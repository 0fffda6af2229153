// Windows of pictures whose columns are adjacent in memory: a block lays the places of a tile, or of the tiles of some
// small planes, into shared memory, and its threads sum patches of the result from there, with all taps in registers.
#pragma once
#include "windows.h"

namespace pf::cuda {

constexpr int kMostPlanes = 16;  // of a block

// A block's threads are `lanes` columns of patches times `groups` rows of patches times `planes`. Its piece of a plane
// is `height` x `width` places of the source; rows are `pitch` apart in shared memory, planes `area`. Columns are kept
// apart by kDown, column x at [x % kDown][x / kDown], so that what neighbours read lies side by side.
struct Tiling {
  int lanes, groups, planes;
  int height, width, half, pitch, area;
  int line;                // threads that read a row together
  int begin_y, begin_x;    // the first result of the first tile: 0, or before it where a first tap is to meet a place
  int source_y, source_x;  // and the place that its first tap meets
  int step_y, step_x;      // places from one tile to the next
  int64_t across, tiles;   // how many there are
};

// kRows x kColumns results a thread, of kTaps x kTaps taps; the places of its window are kPlacesY x kPlacesX.
template <int kTaps, int kUp, int kDown>
struct PlanePatch {
  // Stride 1: a column of eight reads 14 places for 8 results with 7 taps, one of four 10 for 4.
  static constexpr int kRows = kUp * kDown == 1 ? 8 : 4, kColumns = kUp;
  static constexpr int kPlacesY = (kTaps - 1 + (kRows - 1) * kDown) / kUp + 1;
  static constexpr int kPlacesX = (kTaps - 1 + (kColumns - 1) * kDown) / kUp + 1;
};

// Tiles of one plane of the result with these axes, and how many of `planes` go into a block.
template <int kTaps, int kUp, int kDown>
Tiling tiling_of(const WindowAxis& y, const WindowAxis& x, int64_t planes) {
  typedef PlanePatch<kTaps, kUp, kDown> Patch;
  Tiling t;
  t.begin_y = y.pad % kUp ? -1 : 0, t.begin_x = x.pad % kUp ? -1 : 0;
  t.lanes = kWarp;
  while (t.lanes > 8 && (t.lanes / 2) * Patch::kColumns >= x.result - t.begin_x) t.lanes /= 2;
  t.groups = 1;
  while (t.groups * t.lanes < kWindowThreads && t.groups * Patch::kRows < y.result - t.begin_y) t.groups *= 2;
  t.planes = kWindowThreads / (t.lanes * t.groups);
  while (t.planes > 1 && t.planes / 2 >= planes) t.planes /= 2;
  const int rows = t.groups * Patch::kRows, columns = t.lanes * Patch::kColumns;
  t.height = (kTaps - 1 + (rows - 1) * kDown) / kUp + 1, t.width = (kTaps - 1 + (columns - 1) * kDown) / kUp + 1;
  t.half = (t.width + kDown - 1) / kDown, t.pitch = t.half * kDown;
  t.area = t.height * t.pitch;
  if (t.lanes < kWarp) t.area += ((t.lanes - t.area) % kWarp + kWarp) % kWarp;  // planes of a warp in other banks
  t.line = 8;
  while (t.line < kWarp && t.line < t.width) t.line *= 2;
  t.source_y = (int)((t.begin_y * kDown - y.pad) / kUp), t.source_x = (int)((t.begin_x * kDown - x.pad) / kUp);
  t.step_y = rows * kDown / kUp, t.step_x = columns * kDown / kUp;
  t.across = (x.result - t.begin_x + columns - 1) / columns;
  t.tiles = t.across * ((y.result - t.begin_y + rows - 1) / rows);
  return t;
}

// Which patch of which tile a thread has.
struct PatchPlace {
  int lane, group, plane;
};
__device__ __forceinline__ PatchPlace own_patch(const Tiling& t) {
  const int thread = (int)threadIdx.x, row = thread / t.lanes;
  return {thread % t.lanes, row % t.groups, row / t.groups};
}

// The places of a tile of some planes to shared memory, zeros where there are none. of_planes: where each begins. All
// threads come; they meet at a barrier before this is read.
template <int kDown, class From>
__device__ __forceinline__ void load_tile(Acc<From>* to, const From* source, const int64_t* of_planes, int planes,
                                          const Tiling& t, int64_t tile, const WindowAxis& y, const WindowAxis& x,
                                          const PictureStrides& strides) {
  const int first_y = t.source_y + (int)(tile / t.across) * t.step_y;
  const int first_x = t.source_x + (int)(tile % t.across) * t.step_x;
  const int lane = (int)threadIdx.x % t.line, lines = kWindowThreads / t.line;
  int row = (int)threadIdx.x / t.line, plane = 0;
  while (true) {
    while (row >= t.height) row -= t.height, plane++;
    if (plane >= t.planes) return;
    const int64_t at_y = first_y + row;
    const bool is_there = plane < planes && at_y >= 0 && at_y < y.source;
    const From* const from = source + (is_there ? of_planes[plane] + at_y * strides.y : 0);
    Acc<From>* const line = to + plane * t.area + row * t.pitch;
    for (int column = lane; column < t.width; column += t.line) {
      const int64_t at_x = first_x + column;
      line[column % kDown * t.half + column / kDown] =
          is_there && at_x >= 0 && at_x < x.source ? widen(from[at_x * strides.x]) : Acc<From>(0);
    }
    row += lines;
  }
}

// The first place of a thread's window in the tile, and from there to (y, x).
template <int kTaps, int kUp, int kDown>
__device__ __forceinline__ int window_in_tile(const Tiling& t, const PatchPlace& own) {
  typedef PlanePatch<kTaps, kUp, kDown> Patch;
  return own.plane * t.area + own.group * (Patch::kRows * kDown / kUp) * t.pitch + own.lane;
}
template <int kDown>
__device__ __forceinline__ int place_in_window(const Tiling& t, int y, int x) {
  return y * t.pitch + x % kDown * t.half + x / kDown;
}

template <class From, class Taps, class Finish, int kTaps, int kUp, int kDown>
struct WindowsOfPlanes : Kernel<kWindowThreads> {
  typedef Acc<From> V;
  typedef PlanePatch<kTaps, kUp, kDown> Patch;

  // is_aligned: kUp adjacent results can be written at once.
  __device__ void operator()(Windows p, Tiling t, const From* source, Taps taps, Finish finish, bool is_aligned) const {
    PF_DYNAMIC_SHARED(V, places);
    PF_SHARED(int64_t, of_planes, kMostPlanes);
    const int64_t tile = (int64_t)blockIdx.x % t.tiles, first = (int64_t)blockIdx.x / t.tiles * t.planes;
    const int64_t left = p.outer * p.channels - first;
    const int planes = left < t.planes ? (int)left : t.planes;
    if ((int)threadIdx.x < planes) {
      const int64_t plane = first + threadIdx.x;
      of_planes[threadIdx.x] = plane / p.channels * p.source.outer + plane % p.channels / p.share * p.source.channel;
    }
    __syncthreads();
    load_tile<kDown>(places, source, of_planes, planes, t, tile, p.y, p.x, p.source);
    __syncthreads();

    const PatchPlace own = own_patch(t);
    const int64_t y = t.begin_y + (tile / t.across * t.groups + own.group) * Patch::kRows;
    const int64_t x = t.begin_x + (tile % t.across * t.lanes + own.lane) * Patch::kColumns;
    if (own.plane >= planes || y >= p.y.result || x >= p.x.result) return;
    const int64_t channel = (first + own.plane) % p.channels;
    V weights[kTaps][kTaps];
    PF_UNROLL_ALL
    for (int i = 0; i < kTaps; i++) PF_UNROLL_ALL
    for (int j = 0; j < kTaps; j++) {
      V one[1];
      taps.read(one, channel, i, j, 1, false);
      weights[i][j] = one[0];
    }
    V sums[Patch::kRows][Patch::kColumns] = {};
    const V* const window = places + window_in_tile<kTaps, kUp, kDown>(t, own);
    PF_UNROLL_ALL
    for (int j = 0; j < Patch::kPlacesX; j++) PF_UNROLL_ALL
    for (int i = 0; i < Patch::kPlacesY; i++) {
      const V value = window[place_in_window<kDown>(t, i, j)];
      PF_UNROLL_ALL
      for (int r = 0; r < Patch::kRows; r++) PF_UNROLL_ALL
      for (int c = 0; c < Patch::kColumns; c++) {
        const int tap_y = i * kUp - r * kDown, tap_x = j * kUp - c * kDown;
        if (tap_y >= 0 && tap_y < kTaps && tap_x >= 0 && tap_x < kTaps) sums[r][c] += weights[tap_y][tap_x] * value;
      }
    }
    const int64_t at = (first + own.plane) / p.channels * p.result.outer + channel * p.result.channel + x;
    PF_UNROLL_ALL
    for (int r = 0; r < Patch::kRows; r++) {
      if (y + r < 0 || y + r >= p.y.result) continue;
      if (x >= 0) {
        finish.template write<false>(sums[r], at + (y + r) * p.result.y, channel, p.x.result - x, is_aligned);
      } else {  // the column before the first
        V rest[1] = {sums[r][Patch::kColumns - 1]};
        finish.template write<false>(rest, at + 1 + (y + r) * p.result.y, channel, 1, false);
      }
    }
  }
};

}  // namespace pf::cuda
