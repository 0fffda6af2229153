// A convolution of images whose channels lie along memory (channels_last): results are rows, a block of them at a time,
// and their channels are columns. The weight is packed once per call into panels, [panel][tap][channel][kPanel]; what
// the taps of a block read is gathered for one chunk of the depth, as rows.
#pragma once
#include "finish.h"
#include "problem.h"

namespace PF_ISA::conv {

namespace {

// Steps of a sum over taps, then channels: those of one (depth, height), which are often adjacent in memory.
struct Piece {
  int64_t d, h;        // taps
  int64_t begin, end;  // of width tap * channels + channel
};

struct Pieces {
  Piece piece[kChunk];
  int64_t count = 0;

  template <class S>
  Pieces(const Correlation<S>& p, int64_t k, int64_t k_end) {
    const int64_t line = p.axes[2].taps * p.channels;
    while (k < k_end) {
      const int64_t begin = k % line, end = min_of(line, begin + k_end - k);
      piece[count++] = {k / line / p.axes[1].taps, k / line % p.axes[1].taps, begin, end};
      k += end - begin;
    }
  }
};

// Of one row of the source, the elements of a piece. A vector more may be written.
template <class S, class T>
PF_INLINE void gather_piece(const Correlation<S>& p, const S* row, int64_t w, const Piece& piece, T* out) {
  const Axis& a = p.axes[2];
  const int64_t apart = a.tap_step * p.from_stride.spatial[2];
  const Inside taps(w, a.tap_step, a.taps, a.from);
  const S* first = row + w * p.from_stride.spatial[2];
  if (p.from_stride.channel == 1 && apart == p.channels) {
    const int64_t begin = min_of(max_of(piece.begin, taps.begin * p.channels), piece.end);
    const int64_t end = max_of(begin, min_of(piece.end, taps.end * p.channels));
    clear(out, 0, begin - piece.begin);
    copy(first + begin, 1, end - begin, out + begin - piece.begin);
    clear(out, end - piece.begin, piece.end - piece.begin);
    return;
  }
  for (int64_t at = piece.begin; at < piece.end;) {
    const int64_t tap = at / p.channels, channel = at % p.channels;
    const int64_t count = min_of(p.channels - channel, piece.end - at);
    T* to = out + at - piece.begin;
    if (tap >= taps.begin && tap < taps.end)
      copy(first + tap * apart + channel * p.from_stride.channel, p.from_stride.channel, count, to);
    else
      clear(to, 0, count);
    at += count;
  }
}

// Results [first, first + count): the steps of `pieces` to out[result][pitch]; where they are written to to_at. A
// vector more may be written after the last.
template <class S, class T>
void gather_rows(const Correlation<S>& p, const S* from, int64_t first, int64_t count, const Pieces& pieces,
                 int64_t pitch, T* out) {
  const Axis(&axes)[kConvDims] = p.axes;
  const ConvStrides& stride = p.from_stride;
  const bool is_adjacent = stride.channel == 1 && axes[2].tap_step * stride.spatial[2] == p.channels;
  const int64_t last_tap = (axes[2].taps - 1) * axes[2].tap_step;
  Place place = Place::at(p, first);
  for (int64_t i = 0; i < count; i++, out += pitch) {
    const S* image = from + place.n * stride.outer;
    const int64_t d0 = place.index(axes, 0), h0 = place.index(axes, 1), w = place.index(axes, 2);
    const bool is_whole = is_adjacent && w >= 0 && w + last_tap < axes[2].from;  // most are
    T* to = out;
    for (int64_t j = 0; j < pieces.count; j++) {
      const Piece& piece = pieces.piece[j];
      const int64_t d = d0 + piece.d * axes[0].tap_step, h = h0 + piece.h * axes[1].tap_step;
      const int64_t size = piece.end - piece.begin;
      const S* row = image + d * stride.spatial[0] + h * stride.spatial[1];
      if (!is_inside(d, axes[0].from) || !is_inside(h, axes[1].from))
        clear(to, 0, size);
      else if (is_whole)
        copy(row + w * stride.spatial[2] + piece.begin, 1, size, to);
      else
        gather_piece(p, row, w, piece, to);
      to += size;
    }
    if (++place.j[2] == axes[2].count) place.next_row(p);
  }
}

// Steps [begin, end) of gathered rows, scaled: those of results [first, first + count).
template <class S, class T>
void scale_rows(const Correlation<S>& p, int64_t group, int64_t first, int64_t count, int64_t begin, int64_t end,
                int64_t pitch, T* rows) {
  const int64_t places = p.positions() / p.batch;
  for (int64_t i = 0; i < count; i++, rows += pitch) {
    const S* style = p.style_of((first + i) / places, group);
    for (int64_t k = begin, n; k < end; k += n) {
      const int64_t channel = k % p.channels;
      n = min_of(p.channels - channel, end - k);
      T* row = rows + k - begin;
      for (int64_t c = 0; c < n; c += kLanes<T>)
        store_n(row + c, load_n(row + c, n - c) * load_n(style + channel + c, n - c), n - c);
    }
  }
}

// Are the places of the source, one after the other, the rows that a product reads? A 1x1 kernel at every place.
template <class S>
PF_INLINE bool reads_in_place(const Correlation<S>& p) {
  if (p.has_style || sizeof(S) != sizeof(Acc<S>) || p.taps() != 1 || p.from_stride.channel != 1) return false;
  int64_t apart = p.from_stride.spatial[2];
  for (int i = kConvDims - 1; i >= 0; i--) {
    const Axis& a = p.axes[i];
    if (a.count != a.from || a.tap_first != 0 ||
        (a.count > 1 && (a.from_step != 1 || p.from_stride.spatial[i] != apart)))
      return false;
    apart *= a.count;
  }
  return p.batch == 1 || p.from_stride.outer == apart;
}

constexpr int64_t kSumsBytes = 256 << 10;  // of a block: part of a second-level cache

template <class S>
struct RowsPlan {
  typedef Acc<S> T;
  int threads;
  int64_t panels, block_rows, blocks;
  int64_t packed_bytes, thread_bytes;

  static RowsPlan plan(const Correlation<S>& p, int num_threads) {
    RowsPlan plan;
    const int64_t positions = p.positions();
    plan.threads = p.threads(num_threads);
    plan.panels = ceil_div(p.rows, gemm::kPanel<T>);
    const int64_t fits = kSumsBytes / max_of(1, plan.panels * gemm::kPanel<T> * (int64_t)sizeof(T));
    int64_t rows = min_of(max_of(fits, 8 * gemm::kTileRows), 40 * gemm::kTileRows);
    if (plan.threads > 1) rows = min_of(rows, ceil_div(positions * p.groups, 2 * plan.threads));
    plan.block_rows = round_up(max_of(rows, 1), gemm::kTileRows);
    plan.blocks = ceil_div(positions, plan.block_rows);
    plan.packed_bytes = p.groups * plan.panels * p.depth() * gemm::kPanel<T> * sizeof(T);
    const int64_t of_thread = (plan.block_rows * (kChunk + plan.panels * gemm::kPanel<T>)+gemm::kPanel<T>)*sizeof(T);
    plan.thread_bytes = round_up(of_thread + plan.block_rows * sizeof(int64_t), 64);
    return plan;
  }
  int64_t bytes() const { return threads * thread_bytes; }
};

// The weight as [group][panel][tap][channel][kPanel].
template <class S, class T>
void pack_panels(const Correlation<S>& p, int64_t panels, T* out, int threads) {
  const int64_t taps = p.taps(), height = p.axes[1].taps, width = p.axes[2].taps;
  parallel_ranges(p.groups * panels * taps, 4, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t tap = i % taps, panel = i / taps % panels, group = i / taps / panels;
      const int64_t column = panel * gemm::kPanel<T>;
      const S* from = p.weight + group * p.weight_group + column * p.weight_row +
                      p.weight_at(tap / width / height, tap / width % height, tap % width);
      gemm::pack_panel(from, p.weight_channel, p.weight_row, 0, p.channels, p.channels,
                       min_of(gemm::kPanel<T>, p.rows - column), out + i * p.channels * gemm::kPanel<T>);
    }
  });
}

// `rows` rows of sums, kPanel apart, of channels that are adjacent where they are written, each to to[row] + channel.
// Results that are as far apart as the first two leave together; where samples have styles, `places` of them each,
// those of a sample: the first row is position `first`.
template <class S, class T>
PF_INLINE void finish_rows(const FinishRows<S>& finish, const T* sums, const int64_t* to, int64_t rows, int64_t columns,
                           int64_t channel, int64_t places = 0, int64_t first = 0) {
  for (int64_t r = 0, count; r < rows; r += count) {
    const int64_t sample = places ? (first + r) / places : 0, place = first + r - sample * places;
    const int64_t most = places ? min_of(rows - r, places - place) : rows - r;
    const int64_t apart = most > 1 ? to[r + 1] - to[r] : 0;
    for (count = 1; count < most && to[r + count] - to[r + count - 1] == apart; count++) continue;
    finish({sums + r * gemm::kPanel<T>, count, gemm::kPanel<T>, columns, to[r] + channel, apart, 1, channel, true, 0,
            sample, place});
  }
}

template <class S>
void rows_product(const Correlation<S>& p, PackedWeight packed, void* workspace, const FinishRows<S>& finish,
                  int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t panel_width = gemm::kPanel<T>;
  const RowsPlan<S> plan = RowsPlan<S>::plan(p, num_threads);
  const int64_t depth = p.depth(), positions = p.positions(), places = positions / max_of(1, p.batch);
  T* panels = (T*)packed.memory;
  if (!packed.is_done) pack_panels(p, plan.panels, panels, plan.threads);
  const bool in_place = reads_in_place(p);
  const int64_t pitch = in_place ? p.from_stride.spatial[2] : kChunk;
  parallel_tasks(p.groups * plan.blocks, plan.threads, [&](int64_t task, int thread) {
    const int64_t group = task / plan.blocks, first = task % plan.blocks * plan.block_rows;
    const int64_t row_count = min_of(plan.block_rows, positions - first);
    const S* from = p.from + group * p.channels * p.from_stride.channel;
    const T* weight = panels + group * plan.panels * depth * panel_width;
    T* gathered = (T*)((char*)workspace + thread * plan.thread_bytes);
    T* sums = gathered + plan.block_rows * kChunk + panel_width;
    int64_t* to_at = (int64_t*)(sums + plan.block_rows * plan.panels * panel_width);
    Place place = Place::at(p, first);
    for (int64_t i = 0; i < row_count; i++) {
      to_at[i] = place.to(p);
      if (++place.j[2] == p.axes[2].count) place.next_row(p);
    }
    int64_t k = 0;
    do {  // once for a depth of 0: zeros
      const int64_t chunk = min_of(kChunk, depth - k);
      const T* rows = in_place ? (const T*)from + first * pitch + k : gathered;
      if (!in_place) gather_rows(p, from, first, row_count, Pieces(p, k, k + chunk), kChunk, gathered);
      if (p.style) scale_rows(p, group, first, row_count, k, k + chunk, kChunk, gathered);
      for (int64_t panel = 0; panel < plan.panels; panel++) {
        const int64_t column = panel * panel_width, columns = min_of(panel_width, p.rows - column);
        const int vectors = (int)ceil_div(columns, kLanes<T>);
        const T* b = weight + (panel * depth + k) * panel_width;
        const T* b_next = panel + 1 < plan.panels ? b + depth * panel_width : weight + (k + chunk) * panel_width;
        const int64_t share = ceil_div(chunk * panel_width * gemm::kTileRows, row_count);
        for (int64_t i = 0, count; i < row_count; i += count) {
          count = gemm::next_tile_rows(row_count - i);
          const T* a_tile = rows + i * pitch;
          prefetch_rows(a_tile + count * pitch, pitch, min_of(count, row_count - i - count), chunk);
          prefetch_far(b_next + i / gemm::kTileRows * share, share);
          T* tile = sums + (panel * plan.block_rows + i) * panel_width;
          const int64_t channel = group * p.rows + column;
          if (k + chunk == depth)
            for (int64_t r = 0; r < count; r++) finish.prefetch(to_at[i + r] + channel, 0, 1, columns);
          gemm::tile_of<T, gemm::Lies::by_row>((int)count, vectors)(chunk, a_tile, pitch, b, tile, k == 0);
          if (k + chunk < depth) continue;
          finish_rows(finish, tile, to_at + i, count, columns, channel, p.has_style ? places : 0, first + i);
        }
      }
      k += kChunk;
    } while (k < depth);
  });
}

}  // namespace

}  // namespace PF_ISA::conv
