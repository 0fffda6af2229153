// Which kernel sums which windows.
#pragma once
#include "window_planes.h"

namespace pf::cuda {

// How an axis is summed that a kernel is compiled for: kTaps taps, and kUp or kDown is 2 or neither.
template <int taps, int up, int down>
struct WindowForm {
  static constexpr int kTaps = taps, kUp = up, kDown = down;

  static bool is_of(const WindowAxis& a) {
    constexpr int64_t kMost = 1 << 28;  // places are counted in 32 bits
    return a.taps == taps && a.up == up && a.down == down && a.dilation == 1 && a.source < kMost && a.result < kMost &&
           a.pad < kMost && -a.pad < kMost;
  }
};
template <class... Forms>
struct WindowForms {};
template <int... kTaps>
using FormsOfTaps = WindowForms<WindowForm<kTaps, 1, 1>..., WindowForm<kTaps, 2, 1>..., WindowForm<kTaps, 1, 2>...>;

// Calls f(form) with the first of the forms that x is of; false where it is of none.
template <class F>
bool for_window_form(WindowForms<>, const WindowAxis&, F) {
  return false;
}
template <class Form, class... Forms, class F>
bool for_window_form(WindowForms<Form, Forms...>, const WindowAxis& x, F f) {
  if (!Form::is_of(x)) return for_window_form(WindowForms<Forms...>(), x, f);
  f(Form());
  return true;
}

template <class Form>
bool is_form_of_planes(const Windows& p) {
  return !p.is_channels_last && Form::is_of(p.y) && p.depth == 1 && p.result.x == 1;
}

template <class Form, class From, class Taps, class Finish>
Status sum_planes(const Windows& p, const From* source, Taps taps, Finish finish, Stream stream) {
  constexpr int kTaps = Form::kTaps, kUp = Form::kUp, kDown = Form::kDown;
  const int64_t planes = p.outer * p.channels;
  const Tiling t = tiling_of<kTaps, kUp, kDown>(p.y, p.x, planes);
  const bool is_even = (p.result.outer | p.result.channel | p.result.y) % kUp == 0;
  const bool is_aligned = is_even && t.begin_x == 0 && finish.is_aligned(kUp);
  return launch<WindowsOfPlanes<From, Taps, Finish, kTaps, kUp, kDown>>(
      dim3(blocks_for((planes + t.planes - 1) / t.planes * t.tiles, 1)),
      (size_t)(t.planes * t.area) * sizeof(Acc<From>), stream, p, t, source, taps, finish, is_aligned);
}

template <class Form, class From, class Taps, class Finish>
Status sum_channels(const Windows& p, const From* source, Taps taps, Finish finish, Stream stream) {
  typedef WindowsOfChannels<From, Taps, Finish, Form::kTaps, Form::kUp, Form::kDown> Kernel;
  const int64_t begin = p.x.pad % Form::kUp ? -1 : 0, runs = (p.x.result - begin + Kernel::kRun - 1) / Kernel::kRun;
  return launch<Kernel>(dim3(window_blocks(p, runs, Kernel::kCount)), 0, stream, p, begin, source, taps, finish);
}

// Forms: those that kernels are compiled for, where numbers are no doubles. A `finish` says by is_aligned(count)
// whether all that it reads and writes begins where so many elements can be taken at once, and so do `taps`.
template <class Forms, class From, class Taps, class Finish>
Status sum_windows(const Windows& p, const From* source, Taps taps, Finish finish, Stream stream) {
  if (!(p.outer && p.channels && p.y.result && p.x.result)) return {nullptr};
  constexpr int kCount = kChannelsAtOnce<From>;
  const bool is_one_to_one = p.depth == 1 && p.share == 1;
  const bool is_together = p.is_channels_last && is_one_to_one && p.source.channel == 1 && p.result.channel == 1;
  const bool is_aligned = is_together && is_in_chunks(source, p.source, sizeof(From), kCount) &&
                          p.result.outer % kCount == 0 && p.result.y % kCount == 0 && p.result.x % kCount == 0 &&
                          taps.is_aligned(kCount) && finish.is_aligned(kCount);
  Status status = {nullptr};
  if constexpr (sizeof(From) < 8) {
    bool is_done = false;
    for_window_form(Forms(), p.x, [&](auto form) {
      using Form = decltype(form);
      if (is_aligned && p.channels % kCount == 0)
        status = sum_channels<Form>(p, source, taps, finish, stream), is_done = true;
      else if (is_form_of_planes<Form>(p))
        status = sum_planes<Form>(p, source, taps, finish, stream), is_done = true;
    });
    if (is_done) return status;
  }
  if (is_together)
    return launch<AnyWindows<From, Taps, Finish, kCount>>(dim3(window_blocks(p, p.x.result, kCount)), 0, stream, p,
                                                          source, taps, finish, is_aligned);
  return launch<AnyWindows<From, Taps, Finish, 1>>(dim3(window_blocks(p, p.x.result, 1)), 0, stream, p, source, taps,
                                                   finish, false);
}

}  // namespace pf::cuda
