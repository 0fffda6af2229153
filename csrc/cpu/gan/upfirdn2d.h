// Upsampling, filtering and downsampling in one pass, some rows of the result at a time.
#pragma once
#include "../core/parallel.h"
#include "four_rows.h"
#include "small_planes.h"

namespace PF_ISA::gan {

namespace {

// A row of the result, of a block of channels.
struct Row {
  int64_t rows, blocks, o, of_block, outer;
  Row(int64_t number, int64_t rows, int64_t blocks)
      : rows(rows), blocks(blocks), o(number % rows), of_block(number / rows % blocks), outer(number / rows / blocks) {}
  void next() {
    if (++o < rows) return;
    o = 0;
    if (++of_block < blocks) return;
    of_block = 0, outer++;
  }
};

template <class S>
void upfirdn2d_all(const Upfirdn2d& p, int threads) {
  typedef Acc<S> T;
  const GanFilter& f = p.filter;
  if (p.outer * p.inner * f.out_y * f.out_x == 0) return;
  if (gan_is_by_strips(p)) return upfirdn2d_small_planes<S>(p, threads);
  const int64_t block = gan_block(p.inner, gan_span(f), kGanRow), blocks = ceil_div(p.inner, block);
  Carver carver{(char*)p.workspace, 0};
  const Stage<T> stage(f, block, carver);
  const int64_t most = gan_rows(f, block), bytes = gan_buffer(f, block, most, sizeof(T));
  char* buffers = carver.take<char>(threads * bytes);
  const bool by_four = p.inner == 1 && stage.is_product && f.in_x <= kNarrow && f.out_x <= kNarrow;
  const S zeros[kNarrow] = {};
  const int64_t units = p.outer * blocks * f.out_y, work = f.out_x * block * (f.taps_x + f.taps_y) / 2;
  parallel_ranges(units, max_of(1, kElementwiseGrain / max_of(1, work)), threads, [&](int64_t begin, int64_t end) {
    T* lines = (T*)(buffers + omp_get_thread_num() * bytes);
    memset(lines, 0, bytes);
    Row summed(begin, f.out_y, blocks), filtered = summed;
    for (int64_t unit = begin; unit < end; unit += most) {
      const int64_t n = min_of(most, end - unit);
      for (int64_t i = 0; i < n;) {
        const int64_t channel = summed.of_block * block;
        const S* x = (const S*)p.x + summed.outer * f.in_y * f.in_x * p.inner + channel;
        T* to = lines + i * stage.lines();
        int64_t done = kTogether;
        if (!(by_four && i + kTogether <= n && summed.o + kTogether <= f.out_y &&
              sum_four_rows(stage, to, summed.o, x, zeros))) {
          auto row_at = [&](int64_t row) { return x + row * f.in_x * p.inner; };
          stage.template sum<S>(to, summed.o, row_at, p.inner, min_of(block, p.inner - channel), (const S*)nullptr);
          done = 1;
        }
        for (i += done; done; done--) summed.next();
      }
      for (int64_t i = 0; i < n;) {
        const int64_t channel = filtered.of_block * block;
        S* y = (S*)p.y + (filtered.outer * f.out_y + filtered.o) * f.out_x * p.inner + channel;
        const T* from = lines + i * stage.lines();
        int64_t done = kTogether;
        if (!(by_four && i + kTogether <= n && filter_four_rows(stage, from, y))) {
          stage.template filter<S>(y, filtered.o, from, p.inner, min_of(block, p.inner - channel), AsItIs{});
          done = 1;
        }
        for (i += done; done; done--) filtered.next();
      }
    }
  });
}

}  // namespace

void upfirdn2d(const Upfirdn2d& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) { upfirdn2d_all<decltype(storage)>(p, num_threads); });
}

}  // namespace PF_ISA::gan
