// Upsampling, padding or cropping, filtering and downsampling of pictures in one, in either layout. The gradient is the
// same with other arguments, and so are all derivatives. Four taps and a step of 1 or 2, as StyleGAN2 has them, are
// compiled for; of other filters each result sums its taps, of long separable ones along one axis after the other.
#pragma once
#include "../../common/gan.h"
#include "../core/window_sums.h"

namespace pf::cuda::gan {

namespace {

// Of one filter for all channels, from its first tap that meets a place on: steps are negative where it is turned
// round.
struct FilterTaps {
  const float *y, *x;
  int64_t y_step, x_step;
  bool is_product;  // of a tap of y and one of x; else a tap lies where both steps lead from y

  bool is_aligned(int64_t) const { return true; }
  template <class V, int kCount>
  __device__ __forceinline__ void read(V (&taps)[kCount], int64_t, int64_t at_y, int64_t at_x, int64_t, bool) const {
    const V tap = is_product ? (V)y[at_y * y_step] * (V)x[at_x * x_step] : (V)y[at_y * y_step + at_x * x_step];
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++) taps[i] = tap;
  }
};

template <class To>
struct Scaled {
  To* y;
  Acc<To> gain;

  bool is_aligned(int64_t count) const { return (uintptr_t)y % (sizeof(To) * count) == 0; }
  template <bool kIsAlongChannels, int kCount>
  __device__ __forceinline__ void write(Acc<To> (&sums)[kCount], int64_t at, int64_t, int64_t left,
                                        bool is_aligned) const {
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++) sums[i] *= gain;
    store_values(y + at, sums, left, is_aligned);
  }
};

FilterTaps taps_of(const GanFilter& f) {
  const int64_t rows = f.is_separable ? 1 : f.taps_x, turn = f.is_flipped ? 1 : -1;
  const float* const last_y = f.taps + (f.is_flipped ? 0 : (f.taps_y - 1) * rows);
  const int64_t last_x = f.is_flipped ? 0 : f.taps_x - 1;
  if (f.is_separable) return {last_y, f.taps + last_x, turn, turn, true};
  return {last_y + last_x, nullptr, turn * rows, turn, false};
}

WindowAxis axis_y(const GanFilter& f) { return window_axis(f.in_y, f.out_y, f.taps_y, f.up_y, f.down_y, 1, f.pad_y); }
WindowAxis axis_x(const GanFilter& f) { return window_axis(f.in_x, f.out_x, f.taps_x, f.up_x, f.down_x, 1, f.pad_x); }
WindowAxis as_it_is(int64_t size) { return window_axis(size, size, 1, 1, 1, 1, 0); }

// From pictures [outer, y, x, inner] to such.
Windows windows_of(const Upfirdn2d& p, const WindowAxis& y, const WindowAxis& x) {
  auto strides = [&](int64_t rows, int64_t columns) {
    return PictureStrides{rows * columns * p.inner, 1, columns * p.inner, p.inner};
  };
  return {y, x, strides(y.source, x.source), strides(y.result, x.result), p.outer, p.inner, 1, 1, p.inner > 1};
}

typedef FormsOfTaps<4> Forms;

}  // namespace

// With a workspace of out_x in_y outer inner numbers it goes along one axis after the other; the filter is separable.
Status upfirdn2d(const Upfirdn2d& p, void* stream) {
  const GanFilter& f = p.filter;
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    using V = Acc<T>;
    const FilterTaps taps = taps_of(f);
    const T* const x = (const T*)p.x;
    const Scaled<T> finish = {(T*)p.y, (V)f.gain};
    if (!p.workspace) return sum_windows<Forms>(windows_of(p, axis_y(f), axis_x(f)), x, taps, finish, (Stream)stream);
    V* const between = (V*)p.workspace;
    const FilterTaps across = {taps.x, nullptr, 0, taps.x_step, false}, down = {taps.y, nullptr, taps.y_step, 0, false};
    const Status status = sum_windows<WindowForms<>>(windows_of(p, as_it_is(f.in_y), axis_x(f)), x, across,
                                                     Scaled<V>{between, V(1)}, (Stream)stream);
    if (status.error) return status;
    return sum_windows<WindowForms<>>(windows_of(p, axis_y(f), as_it_is(f.out_x)), (const V*)between, down, finish,
                                      (Stream)stream);
  });
}

}  // namespace pf::cuda::gan
