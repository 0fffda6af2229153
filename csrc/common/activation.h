// Element-wise activations over a dense buffer; the rows of the table are ids (activations.inc).
#pragma once
#include <stdint.h>

#include "dtype.h"

struct ActivationFwd {
  const void* x;  // [n], dtype
  void* y;        // [n], dtype; may alias x
  int64_t n;
  int32_t activation;
  Dtype dtype;
};

struct ActivationBwd {
  const void* dy;     // [n], dtype
  const void* saved;  // [n], dtype: x or y, whichever the row saves
  void* dx;           // [n], dtype; may alias dy
  int64_t n;
  int32_t activation;
  Dtype dtype;
};
