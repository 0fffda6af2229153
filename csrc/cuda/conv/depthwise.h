// Depthwise convolution in two dimensions and its gradient in the input, in either layout, with what follows in the
// registers: scale, bias, residual, activation. Squares of 3, 5 and 7 taps and strides of 1 and 2 are compiled for.
#pragma once
#include "../../common/depthwise.h"
#include "../core/activations.h"
#include "../core/window_sums.h"

namespace pf::cuda::conv {

namespace {

// Of a weight [groups * out_channels, 1, y, x]; of an input's gradient from the last tap on, with negative steps.
template <class T>
struct ChannelTaps {
  const T* first;
  int64_t channel_step, y_step, x_step;

  bool is_aligned(int64_t count) const {
    return (uintptr_t)first % (sizeof(T) * count) == 0 && channel_step == 1 && y_step % count == 0 &&
           x_step % count == 0;
  }
  template <int kCount>
  __device__ __forceinline__ void read(Acc<T> (&taps)[kCount], int64_t channel, int64_t y, int64_t x, int64_t left,
                                       bool is_aligned) const {
    const T* const at = first + channel * channel_step + y * y_step + x * x_step;
    if (is_aligned) return load_values(taps, at, left, true);
    PF_UNROLL_ALL
    for (int i = 0; i < kCount; i++) taps[i] = i < left ? widen(at[i * channel_step]) : Acc<T>(0);
  }
};

// The table of activations in every kernel would be most of its code.
template <class V>
PF_APART V activated(Activation activation, V x) {
  in_kernel::for_activation(activation, [&](auto act) { x = act.forward(x); });
  return x;
}

// What becomes of sums: y = activation(scale sum + bias + residual), of which any part may be absent.
template <class T>
struct Finish {
  T *y, *preact;
  const T *scale, *bias, *residual;
  Activation activation;

  bool is_aligned(int64_t count) const {
    const uintptr_t all = (uintptr_t)y | (uintptr_t)preact | (uintptr_t)scale | (uintptr_t)bias | (uintptr_t)residual;
    return all % (sizeof(T) * count) == 0;
  }
  template <bool kIsAlongChannels, int kCount>
  static __device__ __forceinline__ void load_of_channels(Acc<T> (&values)[kCount], const T* from, int64_t channel,
                                                          int64_t left, bool is_aligned) {
    if constexpr (kIsAlongChannels) {
      load_values(values, from + channel, left, is_aligned);
    } else {
      const Acc<T> value = widen(from[channel]);
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) values[i] = value;
    }
  }
  template <bool kIsAlongChannels, int kCount>
  __device__ __forceinline__ void write(Acc<T> (&sums)[kCount], int64_t at, int64_t channel, int64_t left,
                                        bool is_aligned) const {
    Acc<T> other[kCount];
    if (scale) {
      load_of_channels<kIsAlongChannels>(other, scale, channel, left, is_aligned);
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) sums[i] *= other[i];
    }
    if (bias) {
      load_of_channels<kIsAlongChannels>(other, bias, channel, left, is_aligned);
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) sums[i] += other[i];
    }
    if (residual) {
      load_values(other, residual + at, left, is_aligned);
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) sums[i] += other[i];
    }
    if (preact) store_values(preact + at, sums, left, is_aligned);
    if (activation.row >= 0) {
      PF_UNROLL_ALL
      for (int i = 0; i < kCount; i++) sums[i] = activated(activation, sums[i]);
    }
    store_values(y + at, sums, left, is_aligned);
  }
};

typedef FormsOfTaps<3, 5, 7> Forms;

PictureStrides picture(const ConvStrides& s) { return {s.outer, s.channel, s.spatial[1], s.spatial[2]}; }

WindowAxis forward_axis(const ConvAxis& a) {
  return window_axis(a.x, a.y, a.kernel, 1, a.stride, a.dilation, a.padding);
}
// Tap t of the last one on: place i of x meets (i + padding - (kernel - 1) dilation + t dilation) / stride of y.
WindowAxis input_grad_axis(const ConvAxis& a) {
  return window_axis(a.y, a.x, a.kernel, a.stride, 1, a.dilation, (a.kernel - 1) * a.dilation - a.padding);
}

// Is there one channel in a group, and no depth?
Status refused(const ConvShape& s) {
  const ConvAxis& depth = s.axes[0];
  if (s.in_channels != 1) return {"a group has more than one channel; the kernels of cuda are depthwise"};
  if (depth.x != 1 || depth.y != 1 || depth.kernel != 1 || depth.padding) return {"three dimensions; cuda has two"};
  return {nullptr};
}

Windows forward_windows(const Conv& p) {
  const ConvShape& s = p.shape;
  return {forward_axis(s.axes[1]),
          forward_axis(s.axes[2]),
          picture(p.x_stride),
          picture(p.y_stride),
          s.batch,
          s.groups * s.out_channels,
          1,
          s.out_channels,
          depthwise_is_channels_last(p.y_stride)};
}

}  // namespace

Status fwd(const Conv& p, void* stream) {
  if (const Status status = refused(p.shape); status.error) return status;
  const Windows w = forward_windows(p);
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const ConvStrides& step = p.weight_stride;
    const ChannelTaps<T> taps = {(const T*)p.weight, step.outer, step.spatial[1], step.spatial[2]};
    const Finish<T> finish = {(T*)p.y,          (T*)p.preact,         (const T*)p.scale,
                              (const T*)p.bias, (const T*)p.residual, p.activation};
    return sum_windows<Forms>(w, (const T*)p.x, taps, finish, (Stream)stream);
  });
}

Status input_grad(const Conv& p, void* stream) {
  const ConvShape& s = p.shape;
  if (const Status status = refused(s); status.error) return status;
  const Windows w = {input_grad_axis(s.axes[1]),
                     input_grad_axis(s.axes[2]),
                     picture(p.y_stride),
                     picture(p.x_stride),
                     s.batch,
                     s.groups,
                     s.out_channels,
                     1,
                     depthwise_is_channels_last(p.x_stride)};
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    const ConvStrides& step = p.weight_stride;
    const T* const last =
        (const T*)p.weight + (s.axes[1].kernel - 1) * step.spatial[1] + (s.axes[2].kernel - 1) * step.spatial[2];
    const ChannelTaps<T> taps = {last, step.outer, -step.spatial[1], -step.spatial[2]};
    const Finish<T> finish = {(T*)p.x, nullptr, nullptr, (const T*)p.bias, nullptr, {-1, 0, 0}};
    return sum_windows<Forms>(w, (const T*)p.y, taps, finish, (Stream)stream);
  });
}

}  // namespace pf::cuda::conv
