// Packed-panel matrix products: C[M, N] = epilogue(A[M, K] B[K, N]), any strides of A and B.
//
// B is packed into panels of kPanel columns, [panel][k][kPanel], once per call. A is read in place where it is
// contiguous along K, because a broadcast does not care where its row begins; otherwise blocks of it are packed,
// [tile][k][row of tile]. A tile of C, kTileRows x kPanel, stays in registers for one chunk of K; the sums of the
// chunks meet in a strip (rows of the block x one panel). Every element is summed in the same order whatever the number
// of threads and whatever tile it falls into, so results do not depend on the split.
//
//   for block of K (all of it when A is in place)          pack B                                     shared
//     for block of rows, group of panels (a task)          pack A                                     in L2
//       for panel                                          strip of partial sums                      in L2
//         for chunk of K                                   kChunk x kPanel of B                       in L1
//           for tile of rows                               kTileRows x kPanel accumulators            registers
//
// What is multiplied are operands T of the storage type S (simd/operand.h): the arithmetic type, or pairs of bf16, of
// which K takes half as many steps. All that follows counts in steps; only Product::k counts elements.
//
// What other kernels use: multiply (all of it), pack_b (pack.h).
#pragma once
#include "../core/memory.h"
#include "../core/parallel.h"
#include "pack.h"
#include "tile.h"

namespace PF_ISA::gemm {

// One serial float32 sum is at most this many steps long: accuracy as torch's. A chunk of a panel (32 KB at 64 byte
// vectors) stays in L1 beside the rows of A that pass by.
constexpr int64_t kChunk = 128;

constexpr int64_t kBlockBytes = 1 << 20;  // of A, per thread: half of a large L2
constexpr int64_t kMinBlockRows = 16 * kTileRows, kMaxBlockRows = 80 * kTileRows;
constexpr int64_t kPackedK =
    512;  // steps of a block when A is packed: wide blocks, 2 KB of each row of memory at a time

constexpr int64_t kMaxCopies = 4;  // threads that may each pack all of B for themselves

// Receives finished sums, a tile at a time: write(self, row, column, rows, columns, tile), tile rows kPanel<T> apart.
// prefetch(self, row, column, rows, columns) comes a tile's time before, for memory that will be written.
template <class T>
struct Sink {
  void (*write)(const void* self, int64_t row, int64_t column, int64_t rows, int64_t columns, const T* tile);
  void (*prefetch)(const void* self, int64_t row, int64_t column, int64_t rows, int64_t columns);
  const void* self;
};

// For an Element with operator()(row, column, vector, count), which is given the sums of columns [column, column +
// count), and with `const S* place(row, column)`, where it will write them.
template <class T, class Element>
PF_INLINE Sink<T> sink_of(const Element& element) {
  return {[](const void* self, int64_t row, int64_t column, int64_t rows, int64_t columns, const T* tile) {
            const Element& e = *(const Element*)self;
            for (int64_t r = 0; r < rows; r++, tile += kPanel<T>)
              for (int64_t c = 0; c < columns; c += kLanes<T>)
                e(row + r, column + c, load(tile + c), min_of(kLanes<T>, columns - c));
          },
          [](const void* self, int64_t row, int64_t column, int64_t rows, int64_t columns) {
            const Element& e = *(const Element*)self;
            for (int64_t r = 0; r < rows; r++)
              for (int64_t c = 0; c < columns; c += kLine<T>) __builtin_prefetch(e.place(row + r, column + c), 1);
          },
          &element};
}

template <class S, class T = Operand<S>>
struct Product {
  const S* a;  // [m, k]
  int64_t a_row_stride, a_column_stride;
  const S* b;  // [k, n]; not read when `packed` is given
  int64_t b_row_stride, b_column_stride;
  const T* packed;  // the panels of B, or null
  int64_t m, n, k;
};

// Is the transpose computed? A whose rows are not contiguous is packed six rows at a time, which is dearer than packing
// B: it should be the smaller matrix.
template <class S, class T>
PF_INLINE bool should_transpose(const Product<S, T>& g) {
  return !g.packed && g.a_column_stride != 1 && g.k > 1 && g.m > g.n;
}
template <class S, class T>
PF_INLINE Product<S, T> transposed(const Product<S, T>& g) {
  return {g.b, g.b_column_stride, g.b_row_stride, g.a, g.a_column_stride, g.a_row_stride, nullptr, g.n, g.m, g.k};
}

// Hands the sums of a transposed product on as those of the product.
template <class T>
struct TransposedSink {
  Sink<T> to;

  Sink<T> sink() const {
    return {[](const void* self, int64_t row, int64_t column, int64_t rows, int64_t columns, const T* tile) {
              const Sink<T>& to = ((const TransposedSink*)self)->to;
              constexpr int lanes = kLanes<T>;
              T square_t[kPanel<T> * kPanel<T>] __attribute__((aligned(64)));
              for (int64_t r = 0; r < rows; r += lanes) {
                for (int64_t c = 0; c < columns; c += lanes) {
                  Vec<T> square[lanes];
                  for (int i = 0; i < lanes; i++)
                    square[i] = r + i < rows ? load(tile + (r + i) * kPanel<T> + c) : Vec<T>{};
                  transpose(square);
                  for (int i = 0; i < lanes; i++) store(square_t + (c + i) * kPanel<T>, square[i]);
                }
                to.write(to.self, column, row + r, columns, min_of(lanes, rows - r), square_t);
              }
            },
            [](const void* self, int64_t row, int64_t column, int64_t rows, int64_t columns) {
              const Sink<T>& to = ((const TransposedSink*)self)->to;
              to.prefetch(to.self, column, row, columns, rows);
            },
            this};
  }
};

// How a product is cut; the same for asking how much workspace it takes and for running it.
template <class S, class T = Operand<S>>
struct Plan {
  bool packs_a;
  bool packs_b_in_task;  // one block of rows: nobody shares a panel, so it need not leave L2
  bool private_b;        // each thread packs the panels it uses: what another core has just written is slow to read
  int threads;
  int64_t panels, block_k, blocks_k, block_rows, blocks, groups, group_panels;
  int64_t b_bytes, sums_bytes, thread_bytes;  // parts of the workspace, multiples of 64

  PF_INLINE Plan plan(const Product<S, T>& given, int num_threads) {
    const Product<S, T> g = should_transpose(given) ? transposed(given) : given;
    Plan p;
    const int64_t depth = ceil_div(g.k, kTerms<T>);
    // In place its rows must be rows of whole operands.
    const bool is_whole = g.k % kTerms<T> == 0 && (g.m == 1 || g.a_row_stride % kTerms<T> == 0);
    p.packs_a = sizeof(S) != sizeof(Term<T>) || !is_whole || (g.a_column_stride != 1 && g.k > 1);
    p.panels = ceil_div(g.n, kPanel<T>);
    p.block_k = p.packs_a ? min_of(depth, kPackedK) : depth;
    p.blocks_k = p.block_k ? ceil_div(depth, p.block_k) : 1;
    p.threads = (int)max_of(1, min_of(num_threads, 2 * g.m * g.n * g.k / kThreadFlops));

    int64_t fits = kBlockBytes / (max_of(p.block_k, 1) * (int64_t)sizeof(T)) / kTileRows * kTileRows;
    int64_t rows = min_of(kMaxBlockRows, max_of(kMinBlockRows, fits));
    // Better A from L3, once a panel, than a second block of rows, for which all of B is written to memory and read.
    if (!g.packed && g.m <= kMaxBlockRows) rows = kMaxBlockRows;
    p.blocks = ceil_div(g.m, rows);
    if (p.blocks > 1) p.blocks = round_up(p.blocks, p.threads);
    p.block_rows = round_up(ceil_div(g.m, max_of(p.blocks, 1)), kTileRows);
    p.blocks = ceil_div(g.m, p.block_rows ? p.block_rows : 1);
    // Too few blocks of rows for the threads: cut the panels as well. Each group packs its rows of A anew.
    const int64_t tasks = (p.packs_a ? 1 : 4) * p.threads;
    p.groups = p.threads == 1 || p.blocks >= 2 * p.threads ? 1 : ceil_div(tasks, max_of(p.blocks, 1));
    p.group_panels = ceil_div(p.panels, max_of(1, min_of(p.groups, p.panels)));
    p.groups = p.group_panels ? ceil_div(p.panels, p.group_panels) : 0;

    p.packs_b_in_task = !g.packed && p.blocks <= 1;
    // One part a thread: its panels, or, where A is packed and the larger, its rows. Not where that leaves threads
    // idle, or would copy all of B often.
    const bool splits_panels = !p.packs_a || g.m <= g.n;
    const int64_t each = ceil_div(p.panels, p.threads);
    const bool is_even =
        splits_panels ? 8 * p.panels >= 7 * each * p.threads : p.blocks % p.threads == 0 && p.threads <= kMaxCopies;
    p.private_b = !g.packed && !p.packs_b_in_task && p.threads > 1 && is_even;
    if (p.private_b) {
      p.group_panels = splits_panels ? each : p.panels;
      p.groups = ceil_div(p.panels, p.group_panels);
    }
    const int64_t panel_bytes = p.block_k * kPanel<T> * sizeof(T);
    p.b_bytes = g.packed || p.packs_b_in_task ? 0 : p.panels * panel_bytes;
    if (p.private_b && p.groups == 1) p.b_bytes *= p.threads;
    p.sums_bytes = p.blocks_k > 1 ? p.panels * kPanel<T> * g.m * sizeof(Acc<T>) : 0;
    int64_t strip = p.blocks_k > 1 ? 0 : p.block_rows * kPanel<T> * sizeof(Acc<T>);
    p.thread_bytes = strip + (p.packs_b_in_task ? panel_bytes : 0) +
                     round_up(p.packs_a ? p.block_rows * p.block_k * sizeof(T) : 0, 64);
    return p;
  }
  PF_INLINE int64_t bytes(const Plan& p) { return p.b_bytes + p.sums_bytes + p.threads * p.thread_bytes; }
};

// One task: rows [row, row_end) of panels [panel, panel_end), over steps [k_begin, k_end).
template <bool kPackedA, class S, class T>
void run_task(const Product<S, T>& g, const Plan<S, T>& p, const T* b, int64_t b_panel_stride, Acc<T>* sums, char* own,
              int64_t row, int64_t row_end, int64_t panel, int64_t panel_end, int64_t k_begin, int64_t k_end,
              Sink<Acc<T>> sink) {
  const int64_t depth = ceil_div(g.k, kTerms<T>), count = k_end - k_begin, row_count = row_end - row;
  Acc<T>* strip = (Acc<T>*)own;
  T* own_panel = (T*)(strip + (sums ? 0 : p.block_rows * kPanel<T>));
  const int64_t first_term = k_begin * kTerms<T>;
  const T* a = (const T*)(g.a + row * g.a_row_stride) + k_begin;
  int64_t a_stride = g.a_row_stride / kTerms<T>;
  if constexpr (kPackedA) {
    T* packed_a = own_panel + (p.packs_b_in_task ? p.block_k * kPanel<T> : 0);
    pack_a(g.a + row * g.a_row_stride + first_term * g.a_column_stride, g.a_row_stride, g.a_column_stride, row_count,
           count, g.k - first_term, packed_a);
    a = packed_a;
    a_stride = count;
  }
  for (; panel < panel_end; panel++) {
    const int64_t column = panel * kPanel<T>, columns = min_of(kPanel<T>, g.n - column);
    const int vectors = (int)ceil_div(columns, kLanes<T>);
    if (sums) strip = sums + (panel * g.m + row) * kPanel<T>;
    const T* b_panel = p.packs_b_in_task ? own_panel : b + panel * b_panel_stride;
    if (p.packs_b_in_task)
      pack_panel(g.b + first_term * g.b_row_stride + column * g.b_column_stride, g.b_row_stride, g.b_column_stride, 0,
                 count, g.k - first_term, columns, own_panel);
    int64_t k = 0;
    do {  // once for K = 0: zeros
      const int64_t chunk = min_of(kChunk, count - k);
      const bool first = k_begin + k == 0, last = k_begin + k + chunk == depth;
      const T *b_chunk = b_panel + k * kPanel<T>, *b_next = b_chunk + chunk * kPanel<T>;
      const int64_t share = ceil_div(chunk * kPanel<T> * kTileRows, row_count);  // of the next chunk, per tile
      for (int64_t i = 0, rows; i < row_count; i += rows) {
        rows = next_tile_rows(row_count - i);
        const T* a_tile = a + i * a_stride + (kPackedA ? k * rows : k);
        // The processor's own prefetchers follow neither short rows from one to the next nor a panel across a sweep.
        if constexpr (kPackedA)
          prefetch_rows(a_tile + rows * a_stride, 0, 1, chunk * rows);
        else
          prefetch_rows(a_tile + rows * a_stride, a_stride, min_of(rows, row_count - i - rows), chunk);
        if (!p.packs_b_in_task) prefetch_far(b_next + i / kTileRows * share, share);
        if (last) sink.prefetch(sink.self, row + i, column, rows, columns);
        Acc<T>* tile = strip + i * kPanel<T>;
        tile_of<T, kPackedA ? Lies::packed : Lies::by_row>((int)rows, vectors)(chunk, a_tile, a_stride, b_chunk, tile,
                                                                               first);
        if (last) sink.write(sink.self, row + i, column, rows, columns, tile);
      }
      k += kChunk;
    } while (k < count);
  }
}

// `workspace`: Plan::bytes of 64-byte aligned memory, planned with the same number of threads.
template <class S, class T>
void multiply(const Product<S, T>& given, void* workspace, Sink<Acc<T>> given_sink, int num_threads) {
  const bool is_transposed = should_transpose(given);
  const TransposedSink<Acc<T>> transposed_sink = {given_sink};
  const Product<S, T> g = is_transposed ? transposed(given) : given;
  const Sink<Acc<T>> sink = is_transposed ? transposed_sink.sink() : given_sink;
  const Plan<S, T> p = Plan<S, T>::plan(g, num_threads);
  const int64_t depth = ceil_div(g.k, kTerms<T>);
  char* memory = (char*)workspace;
  T* own_b = (T*)memory;
  Acc<T>* sums = p.sums_bytes ? (Acc<T>*)(memory + p.b_bytes) : nullptr;
  char* own = memory + p.b_bytes + p.sums_bytes;
  for (int64_t block = 0; block < p.blocks_k; block++) {
    const int64_t k_begin = block * p.block_k, k_end = min_of(depth, k_begin + p.block_k);
    const int64_t first_term = k_begin * kTerms<T>, terms = g.k - first_term;
    const T* b = g.packed ? g.packed + k_begin * kPanel<T> : own_b;
    const int64_t b_panel_stride = (g.packed ? depth : k_end - k_begin) * kPanel<T>;
    auto task = [&](const T* panels, int64_t row, int64_t group, int thread) {
      auto run = p.packs_a ? run_task<true, S, T> : run_task<false, S, T>;
      const int64_t panel = group * p.group_panels;
      run(g, p, panels, b_panel_stride, sums, own + thread * p.thread_bytes, row, min_of(g.m, row + p.block_rows),
          panel, min_of(p.panels, panel + p.group_panels), k_begin, k_end, sink);
    };
    const S* b_block = g.b + first_term * g.b_row_stride;
    if (p.private_b) {
      // One task a thread: all rows of its panels, or its rows of all panels.
      parallel_tasks(p.threads, p.threads, [&](int64_t part, int thread) {
        const int64_t group = p.groups > 1 ? part : 0, panel = group * p.group_panels;
        T* panels = own_b + (p.groups > 1 ? 0 : part * p.panels * b_panel_stride);
        for (int64_t i = panel; i < min_of(p.panels, panel + p.group_panels); i++)
          pack_panel(b_block + i * kPanel<T> * g.b_column_stride, g.b_row_stride, g.b_column_stride, 0, k_end - k_begin,
                     terms, min_of(kPanel<T>, g.n - i * kPanel<T>), panels + i * b_panel_stride);
        for (int64_t i = p.groups > 1 ? 0 : part; i < p.blocks; i += p.groups > 1 ? 1 : p.threads)
          task(panels, i * p.block_rows, group, thread);
      });
      continue;
    }
    if (p.b_bytes)
      pack_b(b_block, g.b_row_stride, g.b_column_stride, min_of(terms, p.block_k * kTerms<T>), g.n, own_b, p.threads);
    parallel_tasks(p.blocks * p.groups, p.threads,
                   [&](int64_t i, int thread) { task(b, i / p.groups * p.block_rows, i % p.groups, thread); });
  }
}

}  // namespace PF_ISA::gemm
