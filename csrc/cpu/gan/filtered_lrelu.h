// Upsampling, leaky ReLU and downsampling, of which the upsampled picture is never more than some rows; and the
// derivative, in which phi' is computed again from x.
#pragma once
#include "../core/parallel.h"
#include "stage.h"

namespace PF_ISA::gan {

namespace {

template <class T>
struct LeakyRelu {
  static constexpr bool is_something = true;
  typedef Vec<T> V;
  T gain, slope, clamp;
  V operator()(V u, int64_t, int64_t) const {
    V y = u * select(u > 0, splat<V>(gain), splat<V>(slope));  // as NaN in both
    y = select(y > clamp, splat<V>(clamp), y);
    return select(y < -clamp, splat<V>(-clamp), y);
  }
};

template <class T>
struct LeakyReluTimes {  // v at the same place
  static constexpr bool is_something = true;
  typedef Vec<T> V;
  T gain, slope, clamp;
  bool is_clamped;
  const T* v;
  V operator()(V u, int64_t j, int64_t left) const {
    const V factor = select(u > 0, splat<V>(gain), splat<V>(slope)), dy = load_n(v + j, left);
    const V y = factor * dy;
    return is_clamped ? select(abs(u * factor) <= clamp, y, V{}) : y;
  }
};

template <class S>
void filtered_lrelu_all(const FilteredLrelu& p, int threads) {
  typedef Acc<S> T;
  if (p.outer * p.inner * p.down.out_y * p.down.out_x == 0) return;
  const int64_t block = filtered_lrelu_block(p), blocks = ceil_div(p.inner, block);
  Carver carver{(char*)p.workspace, 0};
  const Stage<T> up(p.up, block, carver), down(p.down, block, carver);
  const Stage<T> of_v = p.v ? Stage<T>(p.of_v, block, carver) : up;
  const int64_t middle = gan_row(p.up.out_x, block), kept = filtered_lrelu_ring(p, block);
  const int64_t most = gan_rows(p.up, block), most_down = gan_rows(p.down, block);
  const int64_t up_bytes = gan_buffer(p.up, block, most, sizeof(T));
  const int64_t v_bytes = p.v ? gan_buffer(p.of_v, block, most, sizeof(T)) : 0;
  const int64_t down_bytes = gan_buffer(p.down, block, most_down, sizeof(T));
  const int64_t bytes = up_bytes + v_bytes + down_bytes + (kept + 1) * middle * (int64_t)sizeof(T);
  char* buffers = carver.take<char>(threads * bytes);
  const T slope = (T)(p.slope * p.gain), clamp = p.clamp < 0 ? (T)INFINITY : (T)p.clamp;

  // Planes are cut in bands only where there are few of them: what is above a band is computed twice.
  const int64_t planes = p.outer * blocks, rows = p.down.out_y;
  const int64_t bands = planes >= 2 * threads ? 1 : max_of(1, min_of(ceil_div(2 * threads, planes), rows / 16));
  const int64_t band = ceil_div(rows, bands);
  const int64_t work = band * p.down.down_y * p.up.out_x * block * 8;
  parallel_ranges(
      planes * bands, max_of(1, kElementwiseGrain / max_of(1, work)), threads, [&](int64_t begin, int64_t end) {
        char* own = buffers + omp_get_thread_num() * bytes;
        memset(own, 0, bytes);
        T *up_lines = (T*)own, *v_lines = (T*)(own + up_bytes), *down_lines = (T*)(own + up_bytes + v_bytes);
        T *ring = (T*)(own + up_bytes + v_bytes + down_bytes), *v_row = ring + kept * middle;
        for (int64_t unit = begin; unit < end; unit++) {
          const int64_t plane = unit / bands, outer = plane / blocks, channel = plane % blocks * block;
          const int64_t channels = min_of(block, p.inner - channel);
          const S* x = (const S*)p.x + outer * p.up.in_y * p.up.in_x * p.inner + channel;
          const S* v = (const S*)p.v + (p.v ? outer * p.of_v.in_y * p.of_v.in_x * p.inner + channel : 0);
          const S* bias = p.bias ? (const S*)p.bias + (p.inner > 1 ? channel : outer % p.channels) : nullptr;
          S* y = (S*)p.y + outer * rows * p.down.out_x * p.inner + channel;

          auto make_middle = [&](int64_t first, int64_t last) {  // rows of it, into the ring
            for (int64_t m = first; m < last; m += most) {
              const int64_t n = min_of(most, last - m);
              for (int64_t i = 0; i < n; i++) {
                auto x_at = [&](int64_t row) { return x + row * p.up.in_x * p.inner; };
                up.template sum<S>(up_lines + i * up.lines(), m + i, x_at, p.inner, channels, bias);
                if (!p.v) continue;
                auto v_at = [&](int64_t row) { return v + row * p.of_v.in_x * p.inner; };
                of_v.template sum<S>(v_lines + i * of_v.lines(), m + i, v_at, p.inner, channels, (const S*)nullptr);
              }
              for (int64_t i = 0; i < n; i++) {
                T* to = ring + (m + i) % kept * middle;
                const T* lines = up_lines + i * up.lines();
                if (!p.v) {
                  up.template filter<T>(to, m + i, lines, block, channels, LeakyRelu<T>{(T)p.gain, slope, clamp});
                } else {
                  of_v.template filter<T>(v_row, m + i, v_lines + i * of_v.lines(), block, channels, AsItIs{});
                  const LeakyReluTimes<T> then{(T)p.gain, slope, clamp, p.clamp >= 0, v_row};
                  up.template filter<T>(to, m + i, lines, block, channels, then);
                }
              }
            }
          };
          const int64_t from = unit % bands * band, to = min_of(rows, from + band);
          int64_t made = 0;
          for (int64_t o = from; o < to; o += most_down) {
            const int64_t n = min_of(most_down, to - o), first = o * p.down.down_y - p.down.pad_y;
            const int64_t last = min_of(p.up.out_y, first + (n - 1) * p.down.down_y + p.down.taps_y);
            made = max_of(made, max_of(0, first));
            make_middle(made, last);
            made = max_of(made, last);
            for (int64_t i = 0; i < n; i++) {
              auto middle_at = [&](int64_t row) { return ring + row % kept * middle; };
              down.template sum<T>(down_lines + i * down.lines(), o + i, middle_at, block, channels, (const T*)nullptr);
            }
            for (int64_t i = 0; i < n; i++) {
              S* row = y + (o + i) * p.down.out_x * p.inner;
              down.template filter<S>(row, o + i, down_lines + i * down.lines(), p.inner, channels, AsItIs{});
            }
          }
        }
      });
}

}  // namespace

void filtered_lrelu(const FilteredLrelu& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) { filtered_lrelu_all<decltype(storage)>(p, num_threads); });
}

}  // namespace PF_ISA::gan
