// Convolution: y[n, o, j] = sum over i, t of x[n, i, j stride - padding + t dilation] weight[o, i, t], within each
// group of channels; x is zero where it is not. One, two and three dimensions are three: those that are not there have
// size 1.
#pragma once
#include <stdint.h>

#include "activation.h"
#include "dtype.h"

constexpr int kConvDims = 3;

struct ConvAxis {
  int64_t x, y, kernel;  // sizes
  int64_t stride, dilation;
  int64_t padding;  // before x, of either sign; what lies after follows from the sizes
};

// From one element to the next. Of a weight: out channels, in channels of a group, taps.
struct ConvStrides {
  int64_t outer, channel, spatial[kConvDims];
};

// How sums are computed: tap by tap, or, of float32 and a 3x3 kernel in two dimensions, stride and dilation 1, by
// F(2x2, 3x3) or F(4x4, 3x3); of the input's gradient of a 4x4 kernel of stride 2, where channels are adjacent in x,
// winograd_2x2 is F(2x2, 2x2), phase by phase; of the weight's gradient it is F(2x2, 3x3) transposed.
enum class ConvAlgorithm : int32_t { direct = 0, winograd_2x2 = 1, winograd_4x4 = 2 };
constexpr int kConvAlgorithms = 3;

struct ConvShape {
  int64_t batch, groups, in_channels, out_channels;  // channels of one group
  ConvAxis axes[kConvDims];                          // depth, height, width
};

// What a sample's style does to its convolution: `scale` has a value for each of its channels, too.
struct Style {
  const void*
      style;  // [batch, groups * in_channels], dtype, contiguous: scales x; null: there is none, nor what follows
  const void* noise;   // [batch or 1, places of y], dtype, contiguous: the same for all channels; or null
  int64_t noise_step;  // elements from one sample to the next
  double gain, clamp;  // behind the activation; of the magnitude, negative: none
};

// fwd writes y = activation(scale conv(x, weight) + bias + residual), or, where each sample has a style, y =
// clamp(gain activation(scale conv(style x, weight) + bias + noise)); input_grad writes x from y (the output's
// gradient) and weight, plus bias, weight_grad writes weight from y and x.
struct Conv {
  void* x;               // [batch, groups * in_channels, x's sizes], dtype
  void* weight;          // [groups * out_channels, in_channels, kernel's sizes], dtype
  void* y;               // [batch, groups * out_channels, y's sizes], dtype
  const void* scale;     // one for each channel of y, with a style of each sample, dtype, contiguous; or null; fwd only
  const void* bias;      // one for each channel of what is written, dtype, contiguous; or null
  const void* residual;  // as y; or null; fwd only
  void* preact;          // as y: before the activation; or null; fwd only
  void* packed;          // ConvSizes::packed_bytes, 64-byte aligned: the weight as fwd or input_grad read it
  void* workspace;       // ConvSizes::workspace_bytes, 64-byte aligned
  ConvStrides x_stride, weight_stride, y_stride;
  ConvShape shape;
  Activation activation;  // its row is -1: none; fwd only
  ConvAlgorithm algorithm;
  Dtype dtype;
  Style style;
  bool has_style;  // said apart from its address: how much memory is wanted depends on it
  bool is_packed;  // `packed` holds this weight, of an earlier call with a problem of the same packing
};

// How much memory an operation with these fields, addresses apart, and this number of threads wants.
struct ConvSizes {
  Conv conv;
  int64_t* packed_bytes;  // the same for any number of threads
  int64_t* workspace_bytes;
};
