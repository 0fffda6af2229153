// Parameters of a recurrent layer's walk through time alone: the products with x are computed before it, those that
// gradients of x and of weights are made of behind it. What csrc/cuda/recurrent takes; no projection, no float64.
#pragma once
#include "recurrent.h"

struct RnnWalk {
  RnnShape shape;     // `input` is not read
  RnnRows rows;       // `active`, `offsets` and `order` lie where the tensors do; strides of x are not read
  int64_t positions;  // rows of y: the sum of `active` of a packed batch, or length * batch
  RnnWeights weights[kMaxDirections];  // w_hh and biases
  bool allows_tf32;                    // float32 products may be rounded as tensor cores take them
  void* workspace;                     // RnnWalkSizes::workspace_bytes, zeros, 16-byte aligned
};

// Positions are in y's order of rows. What lies past the end of a padded sequence is written, zero, in y and cells.
struct RnnWalkFwd {
  RnnWalk walk;
  const float* x_gates;  // [directions, positions, x_slots, hidden]: x W_ih^T, without biases; may be where `gates` is
  int64_t x_slots;       // the cell's gates, or 4
  const void* h_0;       // [directions, batch, hidden]
  const void* c_0;       // lstm
  void* y;               // [positions, directions, hidden]
  void *h_n, *c_n;
  float* cells;  // [directions, saved, hidden], saved [length, batch] or packed positions; null: not wanted
  float* gates;  // [directions, saved, 4, hidden]; null: not wanted
};

// The pre-activations' gradients of every step.
struct RnnWalkBwd {
  RnnWalk walk;
  const void* h_0;
  const void* c_0;
  const void* y;
  const float* cells;
  const float* gates;   // lstm, gru
  bool gates_lie_as_y;  // [directions, positions, 4, hidden], as RnnActivate leaves them
  const void *dy, *dh_n, *dc_n;
  const float* dcells;
  void *dh_0, *dc_0;  // null: not wanted
  void* dgates;       // [directions, positions, slots, hidden]: i, f, g, o; the input's part of n, hidden r, z, n; one
};

// Sizes of a walk on this device, and whether it can be walked at all.
struct RnnWalkSizes {
  RnnShape shape;
  bool allows_tf32, backward;
  int64_t* workspace_bytes;  // 0: the weights do not fit into the registers and shared memory of resident blocks
};

// Pre-activations without biases to gates, in place: [rows, 4, hidden], of gru the hidden part of n last.
struct RnnActivate {
  RnnShape shape;
  RnnWeights weights;  // biases
  float* gates;
  int64_t rows;
};

// from's row of each step; or, where there are initial states, that of the step before in the direction's time. Zero
// past the end of a sequence.
struct RnnGather {
  RnnShape shape;  // `hidden` is the columns of a direction
  RnnRows rows;
  int64_t positions, from_stride;
  const void* from;     // [positions, directions, hidden], rows from_stride apart
  const void* initial;  // [directions, batch, hidden]; null: the step's own
  void* to;             // [directions, positions, hidden]
};
