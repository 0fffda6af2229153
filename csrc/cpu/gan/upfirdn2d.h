// Upsampling, filtering and downsampling in one pass, some rows of the result at a time.
#pragma once
#include "../core/parallel.h"
#include "stage.h"

namespace PF_ISA::gan {

namespace {

template <class S>
void upfirdn2d_all(const Upfirdn2d& p, int threads) {
  typedef Acc<S> T;
  const GanFilter& f = p.filter;
  if (p.outer * p.inner * f.out_y * f.out_x == 0) return;
  const int64_t block = gan_block(p.inner, gan_span(f)), blocks = ceil_div(p.inner, block);
  Carver carver{(char*)p.workspace, 0};
  const Stage<T> stage(f, block, carver);
  const int64_t most = gan_rows(f, block), bytes = gan_buffer(f, block, most, sizeof(T));
  char* buffers = carver.take<char>(threads * bytes);
  const int64_t units = p.outer * blocks * f.out_y, work = f.out_x * block * (f.taps_x + f.taps_y) / 2;
  parallel_ranges(units, max_of(1, kElementwiseGrain / max_of(1, work)), threads, [&](int64_t begin, int64_t end) {
    T* lines = (T*)(buffers + omp_get_thread_num() * bytes);
    memset(lines, 0, bytes);
    for (int64_t unit = begin; unit < end; unit += most) {
      const int64_t n = min_of(most, end - unit);
      auto each = [&](auto body) {
        for (int64_t i = 0; i < n; i++) {
          const int64_t plane = (unit + i) / f.out_y, o = (unit + i) % f.out_y;
          const int64_t outer = plane / blocks, channel = plane % blocks * block;
          body(outer, channel, o, min_of(block, p.inner - channel), lines + i * stage.lines());
        }
      };
      each([&](int64_t outer, int64_t channel, int64_t o, int64_t channels, T* to) {
        const S* x = (const S*)p.x + outer * f.in_y * f.in_x * p.inner + channel;
        auto row_at = [&](int64_t i) { return x + i * f.in_x * p.inner; };
        stage.template sum<S>(to, o, row_at, p.inner, channels, (const S*)nullptr);
      });
      each([&](int64_t outer, int64_t channel, int64_t o, int64_t channels, const T* from) {
        S* y = (S*)p.y + (outer * f.out_y + o) * f.out_x * p.inner + channel;
        stage.template filter<S>(y, o, from, p.inner, channels, AsItIs{});
      });
    }
  });
}

}  // namespace

void upfirdn2d(const Upfirdn2d& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) { upfirdn2d_all<decltype(storage)>(p, num_threads); });
}

}  // namespace PF_ISA::gan
