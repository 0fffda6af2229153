// Means of a function of each element, of one tensor or two together, their gradients, and the gradients of these.
#pragma once
#include <stdint.h>

#include "dtype.h"

// What is averaged; csrc/cpu/loss/terms.h has the formulas, in this order.
enum class LossTerm : int32_t {
  softplus = 0,            // log(1 + e^x)
  softplus_negative = 1,   // log(1 + e^-x)
  hinge_below = 2,         // max(1 - x, 0)
  hinge_above = 3,         // max(1 + x, 0)
  value = 4,               // x
  half_square_to_one = 5,  // (x - 1)^2 / 2
  half_square = 6,         // x^2 / 2
  minus_softplus = 7,
  minus_value = 8,
};
constexpr int kLossTerms = 9;
constexpr int kLossParts = 2;

struct LossPart {
  const void* x;   // [n], dtype
  const void* dd;  // like x: the gradient of dx; null: it is no second derivative
  void* to;        // like x: dx, or the second derivative; null: not wanted
  int64_t n;       // 0 of a part that is not there, where scale is 0
  LossTerm term;
  double scale;  // what multiplies the sum: 1 / n
  Dtype dtype;
};

// result = sum over the parts of scale * sum f(x), or, where dd is, of scale * sum dd f'(x)
struct LossSums {
  LossPart parts[kLossParts];
  void* workspace;  // loss_chunks of both parts, doubles
  void* result;     // one number
  Dtype result_dtype;
};

// to = dy * scale * f'(x), or, where dd is, dy * scale * dd * f''(x)
struct LossGradients {
  LossPart parts[kLossParts];
  const void* dy;  // one number
  Dtype dy_dtype;
};

// Elements whose sum one thread makes: the same for any number of threads.
constexpr int64_t kLossChunk = 16384;
static inline int64_t loss_chunks(int64_t n) { return (n + kLossChunk - 1) / kLossChunk; }
