// The gradient of the weight of a 3x3 convolution of stride 1, by F(2x2, 3x3) read backwards: of y = A^T [(G g) (B^T
// d)] the derivative in g is G^T [(A dy) (B^T d)]. For each patch the input is transformed as in the forward and m x m
// results' gradients to as many places; in between lie products over the patches, one a place, 16 of them instead
// of 36.
//
//   for group, block of rows, panel of channels, part of the patches          a task
//     for kTiles patches                                                      their transforms in L2
//       for place: sums[place][row][channel] += dy[place][row][patch] x[place][patch][channel]
//     G^T sums G, to memory: parts are added in their order, whichever thread has which
//
// Channels are adjacent in both: the transforms of planes would have to be turned, and those of 7x7 fill half a vector.
// Where a result is not finite it may be no more than spoilt, as in the forward: all are computed again, tap by tap.
#pragma once
#include "weight_grad.h"
#include "winograd.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kMostGradRows = 64;  // as many as a panel has channels: either's transform is shared by so many
static_assert(gemm::kPanel<float> <= kMostGradRows, "for_patches has zeros for as many");

template <class W, class S>
struct WinogradGradPlan {
  typedef Acc<S> T;
  static constexpr int64_t kPanel = gemm::kPanel<T>, kTiles = 32;
  static constexpr int kPlaces = W::patch * W::patch, kTaps = W::taps * W::taps;
  static constexpr int64_t kLeastTasks = 16;  // from parts of the patches, whatever the threads
  int threads;
  int64_t patches, panels, block_rows, blocks, parts, part_patches, tasks;  // panels and blocks: of a group
  int64_t a_place, b_place, sum_place;                                      // elements from place to place
  int64_t thread_bytes, partial_bytes;

  WinogradGradPlan(const Correlation<S>& p, int num_threads) : threads(p.threads(num_threads)) {
    patches = patches_of<W>(p).positions();
    panels = ceil_div(p.channels, kPanel);
    blocks = max_of(1, ceil_div(p.rows, kMostGradRows));
    block_rows = max_of(1, ceil_div(p.rows, blocks));
    const int64_t results = p.groups * panels * blocks;
    parts = max_of(1, min_of(ceil_div(kLeastTasks, max_of(1, results)), patches / (2 * kTiles)));
    part_patches = round_up(ceil_div(patches, parts), kTiles);
    parts = max_of(1, ceil_div(patches, part_patches));
    tasks = results * parts;
    // A line more: a power of two apart, the places that are written together fall into one set of a cache.
    a_place = round_up(kTiles * block_rows, kLine<T>) + kLine<T>;
    b_place = kTiles * kPanel + kLine<T>;
    sum_place = block_rows * kPanel;
    thread_bytes = round_up(kPlaces * (a_place + b_place + sum_place) * sizeof(T), 64);
    partial_bytes = round_up(tasks * kTaps * sum_place * sizeof(T), 64);
  }
  int64_t bytes() const { return threads * thread_bytes + partial_bytes; }
  // Where a task's sums lie, tap by tap.
  int64_t partial_at(int64_t task) const { return task * kTaps * sum_place; }
};

// The gradients of m x m results, as a correlation that reads them.
template <class W, class S>
PF_INLINE Correlation<S> result_tiles_of(const Correlation<S>& patches, const Correlation<S>& p, const S* dy,
                                         const ConvStrides& dy_stride) {
  Correlation<S> tiles = patches;
  tiles.from = dy;
  tiles.from_stride = dy_stride;
  tiles.channels = p.rows;
  for (int i = 1; i < kConvDims; i++) {
    Axis& a = tiles.axes[i];
    a.from = p.axes[i].count;
    a.from_step = a.taps = W::results;
    a.tap_first = 0;
  }
  return tiles;
}

// f(number, at) for each patch of [first, first + count): where its kSide x kSide places lie; at zeros where they are
// outside.
template <int kSide, class S, class F>
PF_INLINE void for_patches(const Correlation<S>& p, const S* from, int64_t first, int64_t count, F f) {
  const S nothing[kMostGradRows] = {};
  const Axis &height = p.axes[1], &width = p.axes[2];
  Place place = Place::at(p, first);
  for (int64_t n = 0; n < count; n++) {
    const S* image = from + place.n * p.from_stride.outer;
    const int64_t first_h = place.index(p.axes, 1), first_w = place.index(p.axes, 2);
    const S* at[kSide * kSide];
    PF_UNROLL
    for (int k = 0; k < kSide * kSide; k++) {
      const int64_t h = first_h + k / kSide, w = first_w + k % kSide;
      const bool is_there = is_inside(h, height.from) && is_inside(w, width.from);
      at[k] = is_there ? image + h * p.from_stride.spatial[1] + w * p.from_stride.spatial[2] : nothing;
    }
    f(n, at);
    if (++place.j[2] == width.count) place.next_row(p);
  }
}

// Of `count` patches `channels` channels, transformed by `one` from kFrom places a side to kTo: [place][patch][pitch].
template <int kFrom, int kTo, class S, class T, class One>
void transform_patches(const Correlation<S>& p, const S* from, int64_t channels, int64_t first, int64_t count,
                       int64_t pitch, int64_t place_stride, T* out, One one) {
  constexpr int lanes = kLanes<T>;
  for_patches<kFrom>(p, from, first, count, [&](int64_t n, const S* const(&at)[kFrom* kFrom]) {
    for (int64_t c = 0; c < channels; c += lanes) {
      Vec<T> d[kFrom][kFrom], v[kTo][kTo];
      PF_UNROLL
      for (int k = 0; k < kFrom * kFrom; k++) d[k / kFrom][k % kFrom] = load_n(at[k] + c, channels - c);
      transform_square(d, v, one);
      PF_UNROLL
      for (int k = 0; k < kTo * kTo; k++)
        store_n(out + k * place_stride + n * pitch + c, v[k / kTo][k % kTo], pitch - c);
    }
  });
}

// False where a result is not finite: then all are to be computed otherwise.
template <class W, class S>
bool winograd_weight_grad(const Correlation<S>& p, const S* dy, const ConvStrides& dy_stride, S* dweight,
                          void* workspace, int num_threads) {
  typedef Acc<S> T;
  typedef WinogradGradPlan<W, S> Plan;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>, side = W::taps;
  constexpr int64_t panel = Plan::kPanel;
  const Plan plan(p, num_threads);
  const Correlation<S> patches = patches_of<W>(p), tiles = result_tiles_of<W>(patches, p, dy, dy_stride);
  T* partial = (T*)((char*)workspace + plan.threads * plan.thread_bytes);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int thread) {
    const int64_t part = task % plan.parts, n = task / plan.parts % plan.panels;
    const int64_t block = task / plan.parts / plan.panels % plan.blocks,
                  group = task / plan.parts / plan.panels / plan.blocks;
    const int64_t column = n * panel, columns = min_of(panel, p.channels - column);
    const int64_t row = block * plan.block_rows, rows = min_of(plan.block_rows, p.rows - row);
    const int vectors = (int)ceil_div(columns, lanes);
    const S *from = p.from + group * p.channels + column, *gradient = dy + group * p.rows + row;
    T* b = (T*)((char*)workspace + thread * plan.thread_bytes);
    T* a = b + Plan::kPlaces * plan.b_place;
    T* sums = a + Plan::kPlaces * plan.a_place;
    const int64_t begin = part * plan.part_patches, end = min_of(begin + plan.part_patches, plan.patches);
    for (int64_t first = begin; first < end; first += Plan::kTiles) {
      const int64_t count = min_of(Plan::kTiles, end - first);
      transform_patches<W::patch, W::patch>(patches, from, columns, first, count, panel, plan.b_place, b,
                                            [](const V(&line)[W::patch], V(&to)[W::patch]) {
                                              PF_UNROLL
                                              for (int i = 0; i < W::patch; i++) to[i] = line[i];
                                              W::of_patch(to);
                                            });
      transform_patches<W::results, W::patch>(
          tiles, gradient, rows, first, count, plan.block_rows, plan.a_place, a,
          [](const V(&line)[W::results], V(&to)[W::patch]) { W::of_gradient(line, to); });
      for (int64_t k = 0; k < Plan::kPlaces; k++)
        for (int64_t i = 0, height; i < rows; i += height) {
          height = gemm::next_tile_rows(rows - i);
          gemm::tile_of<T, gemm::Lies::by_column>((int)height, vectors)(
              count, a + k * plan.a_place + i, plan.block_rows, b + k * plan.b_place,
              sums + k * plan.sum_place + i * panel, first == begin);
        }
    }
    T* out = partial + plan.partial_at(task);
    for (int64_t i = 0; i < rows; i++)
      for (int v = 0; v < vectors; v++) {
        const int64_t at = i * panel + v * lanes;
        V m[W::patch][W::patch], g[side][side];
        PF_UNROLL
        for (int k = 0; k < Plan::kPlaces; k++) m[k / W::patch][k % W::patch] = load(sums + k * plan.sum_place + at);
        transform_square(m, g, [](const V(&line)[W::patch], V(&to)[side]) { W::of_filter_sums(line, to); });
        PF_UNROLL
        for (int t = 0; t < Plan::kTaps; t++) store(out + t * plan.sum_place + at, g[t / side][t % side]);
      }
  });
  std::atomic<bool> is_finite{true};
  parallel_ranges(p.groups * p.rows * plan.panels, 1, plan.threads, [&](int64_t first, int64_t last) {
    V spoilt = {};
    for (int64_t unit = first; unit < last; unit++) {
      const int64_t n = unit % plan.panels, row = unit / plan.panels % p.rows, group = unit / plan.panels / p.rows;
      const int64_t block = row / plan.block_rows, i = row % plan.block_rows;
      const int64_t task = ((group * plan.blocks + block) * plan.panels + n) * plan.parts;
      const int64_t column = n * panel, columns = min_of(panel, p.channels - column);
      S* to = dweight + group * p.weight_group + row * p.weight_row + column * p.weight_channel;
      for (int t = 0; t < Plan::kTaps; t++)
        for (int64_t c = 0; c < columns; c += lanes) {
          const T* from = partial + plan.partial_at(task) + t * plan.sum_place + i * panel + c;
          V sum = load(from);
          for (int64_t part = 1; part < plan.parts; part++) sum += load(from + plan.partial_at(part));
          const int64_t there = min_of(lanes, columns - c);
          T line[lanes] __attribute__((aligned(64)));
          store(line, sum);
          spoilt += load_n(line, there) * V{};
          S* at = to + p.weight_at(0, t / side, t % side) + c * p.weight_channel;
          if (p.weight_channel == 1)
            store_n(at, sum, there);
          else
            for (int64_t l = 0; l < there; l++) put(at + l * p.weight_channel, line[l]);
        }
    }
    if (is_any_spoilt<T>(spoilt, lanes)) is_finite.store(false, std::memory_order_relaxed);
  });
  return is_finite.load();
}

}  // namespace

}  // namespace PF_ISA::conv
