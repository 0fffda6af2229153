// Parameters of the recurrent kernels: one layer of RNN, LSTM or GRU, in one direction or two.
#pragma once
#include <stdint.h>

#include "dtype.h"

enum class Cell : int32_t { lstm = 0, gru = 1, rnn_tanh = 2, rnn_relu = 3 };
constexpr int kCells = 4;

// Rows of the weights for each unit, in torch's order: i, f, g, o of LSTM; r, z, n of GRU; one.
static inline constexpr int gate_count(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

constexpr int kMaxDirections = 2;

struct RnnShape {
  int64_t length, batch;          // steps and sequences
  int64_t input, hidden, output;  // features of x, of the cell, of y: the projection where there is one, or hidden
  int64_t directions;
  Cell cell;
  bool has_projection;
  Dtype dtype;
};

// Where sequence b of step t lies. Sequences are sorted by length, longest first.
struct RnnRows {
  const int64_t* active;                // [length]: sequences that have not ended, descending; null: all of them always
  const int64_t* offsets;               // [length]: the sum of `active` before each step; null with `active`
  const int64_t* order;                 // [batch]: row of the tensors at sorted position b; null: b
  bool is_packed;                       // x and y are [sum of active, features]
  int64_t x_step_stride, x_row_stride;  // elements of x from step to step and from row to row; packed: the same
  int64_t y_step_rows, y_row_rows;      // the same of y, in rows of it: (batch, 1), (1, length), packed (1, 1)
};

// The weights of one direction, contiguous.
struct RnnWeights {
  const void* w_ih;  // [gates * hidden, input]
  const void* w_hh;  // [gates * hidden, output]
  const void* b_ih;  // [gates * hidden]; null: none
  const void* b_hh;  // [gates * hidden]; null with b_ih
  const void* w_hr;  // [output, hidden]; null: no projection
};

// Like RnnWeights; null where a gradient is not wanted.
struct RnnGradients {
  void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};

// Weights in the order the kernels read them, in arithmetic type.
struct RnnPack {
  RnnShape shape;
  RnnWeights weights[kMaxDirections];
  void* panels;  // RnnSizes::panels_bytes, 64-byte aligned
  bool backward;
};

struct RnnFwd {
  RnnShape shape;
  RnnRows rows;
  const void* x;       // features contiguous
  const void* panels;  // of RnnPack by the same instruction set, not backward
  const void* h_0;     // [directions, batch, output]; null: zeros
  const void* c_0;     // [directions, batch, hidden], lstm; null: zeros
  void* y;             // rows of directions * output
  void* h_n;           // like h_0
  void* c_n;           // like c_0
  void* cells;         // [directions, rows, hidden], arithmetic type: c after each step; null: not wanted
  void* gates;         // [directions, rows, 4, hidden], arithmetic type; null: not wanted
  void* workspace;     // RnnSizes::workspace_bytes, 64-byte aligned
};

// Gradients. Rows of y, dy, dx lie as those of y in the forward; what is null is not given, or not wanted.
struct RnnBwd {
  RnnShape shape;
  RnnRows rows;
  const void* x;
  const void* panels;      // of RnnPack, backward
  const void* fwd_panels;  // of RnnPack, not backward; read where `gates` is null
  RnnWeights weights[kMaxDirections];
  const void* h_0;
  const void* c_0;
  const void* y;
  const void* cells;
  const void* gates;   // null: made again from x and y
  const void* dy;      // like y
  const void* dh_n;    // like h_n
  const void* dc_n;    // like c_n
  const void* dcells;  // like cells
  void* dx;            // rows of input features
  void* dh_0;
  void* dc_0;
  RnnGradients grads[kMaxDirections];
  void* workspace;  // RnnSizes::workspace_bytes, 64-byte aligned
};

// How much memory a forward (or backward) with this shape and number of threads wants.
struct RnnSizes {
  RnnShape shape;
  int64_t rows;  // all steps of all sequences: the sum of RnnRows::active, or length * batch
  bool backward;
  int64_t* panels_bytes;
  int64_t* workspace_bytes;
};
