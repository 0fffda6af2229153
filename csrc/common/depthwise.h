// Depthwise convolution on a GPU: of a Conv whose groups have one channel of x, and which has no depth.
#pragma once
#include "conv.h"

// Are a picture's channels adjacent, rather than its columns?
static inline bool depthwise_is_channels_last(const ConvStrides& s) { return s.channel == 1 && s.spatial[2] != 1; }

// The weight's gradient is summed in so many parts of samples and rows, and these are added up: [parts, taps, channels
// of y] numbers in the workspace, float or double. They depend on the shape alone, so that the result does. A GPU of
// 132 processors holds about 2000 blocks of 128 threads, each of which is to have 8 places for a thread.
static inline int64_t depthwise_parts(const Conv& p) {
  const ConvShape& s = p.shape;
  const int64_t channels = s.groups * s.out_channels, places = s.batch * s.axes[1].y * s.axes[2].y;
  const int64_t blocks = depthwise_is_channels_last(p.x_stride) ? (channels + 31) / 32 : channels;
  const int64_t wanted = 2048 / (blocks < 1 ? 1 : blocks), most = places / 1024;
  return wanted < most ? (wanted < 1 ? 1 : wanted) : most < 1 ? 1 : most;
}
static inline int64_t depthwise_workspace(const Conv& p, int64_t itemsize) {
  const ConvShape& s = p.shape;
  const int64_t taps = s.axes[1].kernel * s.axes[2].kernel;
  return depthwise_parts(p) * taps * s.groups * s.out_channels * itemsize;
}
