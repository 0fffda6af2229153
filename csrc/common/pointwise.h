// Element by element: activations, dropout, gated forms, and what is fused to the end of another operation.
#pragma once
#include <stdint.h>

#include "activation.h"
#include "dtype.h"

// ---- activations over a dense buffer; the rows of the table: activations.inc ----
struct ActivationFwd {
  const void* x;  // [n], dtype
  void* y;        // [n], dtype; may alias x
  int64_t n;
  Activation activation;
  Dtype dtype;
};

struct ActivationBwd {
  const void* dy;     // [n], dtype
  const void* saved;  // [n], dtype: x or y, whichever the row saves
  void* dx;           // [n], dtype; may alias dy
  int64_t n;
  Activation activation;
  Dtype dtype;
};

// Of what arrives at dx, ddx: ddy = ddx activation'(saved), and dsaved = ddx dy activation''(saved), by what was saved.
// For rows whose derivative is not flat.
struct ActivationBwdBwd {
  const void *ddx, *dy;  // [n], dtype
  const void* saved;     // [n], dtype: x or y, whichever the row saves
  void* ddy;             // [n], dtype; may alias ddx; or null: not wanted
  void* dsaved;          // [n], dtype; may alias dy
  int64_t n;
  Activation activation;
  Dtype dtype;
};

// ---- dropout over dense memory, with a mask that is a function of the seed and the element's place only ----
//
// Element n lies in block n / 64 at place n % 64. Its random word is word (n % 64) / 16 of Philox4x32-10 with
// key (low, high 32 bits of the seed) and the 64-bit counter 16 * block + n % 16. So one call with 16 neighbouring
// counters serves 64 neighbouring elements, word after word, and vectors of any width draw the same numbers.
struct Dropout {
  const void* x;        // [n], dtype
  const int64_t* seed;  // [1]
  void* y;              // [n], dtype; may alias x
  int64_t n;
  uint32_t drop_below;  // kept: word >= drop_below
  double keep_scale;    // dropped elements are multiplied by 0: NaN and infinity stay visible, as in torch
  Dtype dtype;
};

// The generator itself, for its known-answer test.
struct PhiloxWords {
  const uint32_t* counters;  // [4, n]
  uint32_t* words;           // [4, n]
  int64_t n;                 // multiple of 16
  uint32_t key0, key1;
};

// ---- a dense tensor, as it lies in memory, with one dimension told apart ----
//
// Element e of the n belongs to channel e / inner % channels: a row of a matrix has its columns as channels and an
// inner of 1, images have H W there, and again 1 with channels last. One value for all is one channel.
struct Channels {
  int64_t channels, inner;
};

// Sums over all elements of a channel come from this many parts of the memory, in every build and on any number of
// threads; each wants kBytesOfChannelSums * channels of workspace, 64-byte aligned.
constexpr int64_t kBytesOfChannelSums = 16;
inline int64_t channel_parts(int64_t n, int64_t channels) {
  const int64_t least = channels * 16 > 32768 ? channels * 16 : 32768, parts = n / least;
  return parts < 1 ? 1 : parts > 256 ? 256 : parts;
}

// ---- PReLU: y = x where it is positive, else weight x ----
struct PreluFwd {
  const void* x;       // [n], dtype
  const void* weight;  // [channels], float, or double for f64
  void* y;             // [n], dtype; may alias x
  int64_t n;
  Channels of;
  Dtype dtype;
};

struct PreluBwd {
  const void *dy, *x;  // [n], dtype
  const void* weight;  // [channels], float, or double for f64
  void* dx;            // [n], dtype; may alias dy
  void* dweight;       // as weight; or null
  void* workspace;     // of channel_parts, with a dweight
  int64_t n;
  Channels of;
  Dtype dtype;
};

// ---- RReLU: y = d where x is positive, else d times a slope drawn uniformly from [lower, upper]; d is x, or dy ----
//
// Numbered and drawn as dropout's words; the slope is lower + (upper - lower) (word / 256) / 2^24, the word's first 24
// bits.
struct Rrelu {
  const void *d, *x;    // [n], dtype
  const int64_t* seed;  // [1]
  void* y;              // [n], dtype; may alias d
  int64_t n;
  double lower, upper;
  Dtype dtype;
};

// ---- gated: y = activation(gate) value, matrices with columns that are adjacent ----
struct GatedFwd {
  const void *gate, *value;  // [rows, cols], dtype
  int64_t gate_row_stride, value_row_stride;
  void* y;  // [rows, cols], dtype, contiguous
  int64_t rows, cols;
  Activation activation;
  Dtype dtype;
};

struct GatedBwd {
  const void* dy;            // [rows, cols], dtype, contiguous
  const void *gate, *value;  // [rows, cols], dtype
  int64_t gate_row_stride, value_row_stride;
  void *dgate, *dvalue;  // [rows, cols], dtype
  int64_t dgate_row_stride, dvalue_row_stride;
  int64_t rows, cols;
  Activation activation;
  Dtype dtype;
};

// Of what arrives at dgate and at dvalue, ddgate and ddvalue: what arrives at dy, gate and value.
struct GatedBwdBwd {
  const void *ddgate, *ddvalue;  // [rows, cols], dtype; one of them may be null: nothing arrives there
  const void* dy;                // [rows, cols], dtype, contiguous
  const void *gate, *value;      // [rows, cols], dtype
  int64_t ddgate_row_stride, ddvalue_row_stride, gate_row_stride, value_row_stride;
  void* ddy;             // [rows, cols], dtype, contiguous
  void *dgate, *dvalue;  // [rows, cols], dtype
  int64_t dgate_row_stride, dvalue_row_stride;
  int64_t rows, cols;
  Activation activation;
  Dtype dtype;
};

// ---- what is fused to the end of an operation: u = clamp(gain activation(x + bias)), dropped ----
struct Epilogue {
  const void* bias;  // [channels], float, or double for f64; or null
  Channels of;
  Activation activation;  // its row is -1: none
  double gain;
  double clamp;         // the largest magnitude that is left; negative: any
  const int64_t* seed;  // [1], of dropout's words; or null: nothing is dropped
  uint32_t drop_below;  // as in Dropout
  double keep_scale;
};

struct BiasActFwd {
  const void* x;         // [n], dtype
  const void* residual;  // [n], dtype, added last; or null
  void* y;               // [n], dtype; may alias x or residual
  int64_t n;
  Epilogue epilogue;
  Dtype dtype;
};

struct BiasActBwd {
  const void* dy;   // [n], dtype
  const void* x;    // [n], dtype; or null where there is neither an activation nor a clamp
  void* dx;         // [n], dtype; may alias dy
  void* dbias;      // [channels], float, or double for f64; or null
  void* workspace;  // of channel_parts, with a dbias
  int64_t n;
  Epilogue epilogue;
  Dtype dtype;
};

// ---- dropout's other forms: y = x (kept ? keep_scale : 0) + (kept ? kept_shift : dropped_shift) ----
//
// x is dense, [batch, channels, inner] or, channels last, [batch, inner, channels]. With `factors` a whole channel is
// kept or not, and the word is that of element `batch * channels + channel` above; else each element has its own.
struct DropoutForm {
  const void* x;        // dtype
  const int64_t* seed;  // [1]
  void* y;              // dtype; may alias x
  void* factors;        // workspace [batch * channels], double for double, else float; or null
  int64_t batch, channels, inner;
  bool is_channels_last;
  uint32_t drop_below;
  double keep_scale, kept_shift, dropped_shift;
  Dtype dtype;
};
