// Element by element: activations and dropout.
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
