// Optimisers: one step of all parameters of a group, and the norm of their gradients.
#pragma once
#include <stdint.h>

#include "dtype.h"

// Tensors of one type, dense, of which each column of addresses below has one: elements of tensor i are those from
// before[i] on of all of them in a row. Tensors of a column that two threads write do not overlap.
struct TensorList {
  const int64_t* before;  // [count + 1]
  int64_t count;
  Dtype dtype;
};

// States of sgd: the momentum buffer, where there is momentum; of adam: the averages of the gradient and of its square,
// the largest of these so far (amsgrad); of rmsprop: the average of the square, that of the gradient (centered), the
// momentum buffer.
enum class UpdateRule : int32_t { sgd = 0, adam = 1, rmsprop = 2 };
constexpr int kUpdateRules = 3;
constexpr int kStates = 3;

// What becomes of the gradients; written: as they were applied, times gradient_factor.
enum class Gradients : int32_t { kept = 0, written = 1, zeroed = 2 };
constexpr int kGradients = 3;

// What an optimiser's group says, as torch.optim names it, computed in double.
struct UpdateOptions {
  UpdateRule rule;
  double gradient_factor;  // of the gradient as it is read: unscaling and clipping
  double sign;             // -1: maximize
  double weight_decay;     // times the parameter is added to the gradient; 0: nothing is
  double shrink;           // the parameter's factor before its step: AdamW's decay
  double step_size;        // lr; Adam's divided by its first bias correction
  double momentum;
  double fresh;         // SGD: of the gradient in its momentum buffer, 1 - dampening
  bool is_nesterov;     // SGD
  double mean_decay;    // of the gradient's average
  double square_decay;  // of the square's average
  double root_scale;    // Adam: the root of the second bias correction divides that of the average
  double eps;
  double ema_decay;  // of the averaged copy, where there is one
  Gradients gradients;
};

struct OptimStep {
  TensorList of;
  void* const* params;
  void* const* grads;
  void* const* states[kStates];  // null: the rule has no such state here
  void* const* emas;             // null: none
  UpdateOptions options;
};

enum class NormKind : int32_t { euclidean = 0, maximum = 1 };
constexpr int kNormKinds = 2;

// The sum of squares of all elements, or the largest absolute value (NaN where one is); in double.
struct TotalNorm {
  TensorList of;
  const void* const* tensors;
  const int64_t* chunks_before;  // [count + 1]: chunks of kNormChunk elements, of each tensor its own
  NormKind kind;
  double* chunks;  // workspace, one of each chunk
  double* total;   // out
};
constexpr int64_t kNormChunk = 16384;

// All elements times factor.
struct ScaleTensors {
  TensorList of;
  void* const* tensors;
  double factor;
};
