// Cross entropy of softmaxes over the middle dimension of [outer, n, inner], of a class each or of probabilities, and
// its gradients. Rows of adjacent elements are inner = 1; columns have the elements of `inner` adjacent.
#pragma once
#include <stdint.h>

#include "dtype.h"

enum class Reduction : int32_t { none = 0, mean = 1, sum = 2 };
constexpr int kReductions = 3;

// What the loss is of. With q of a class c: q_c weight[c] smoothing / n, and weight[target] (1 - smoothing) more at the
// target; of probabilities: (probabilities[c] (1 - smoothing) + smoothing / n) weight[c]. A softmax of scores x loses
// sum over c of q_c (log sum exp x - x_c).
struct CrossEntropy {
  const void* x;              // [outer, n, inner], dtype; with inner 1 the n adjacent, else the inner
  const int64_t* targets;     // [outer, inner]; null: they are probabilities
  const void* probabilities;  // [outer, n, inner], dtype, contiguous; or null
  const void* weight;         // [n], accumulation type; null: 1
  int64_t outer, n, inner;
  int64_t x_outer_stride, x_step;  // elements; the step is that of n
  int64_t ignore_index;            // a target that counts for nothing, as one that is no class does
  double smoothing;
  Reduction reduction;
  Dtype dtype;
  Dtype loss_dtype;  // dtype, or float32 beside a half type
};

struct CrossEntropyFwd {
  CrossEntropy of;
  void* loss;    // loss_dtype: [outer, inner], or one number
  void* tops;    // [outer, inner], accumulation type: the largest score
  void* logs;    // likewise: log sum exp(x - top)
  void* total;   // one number, accumulation type: what a mean divides by
  void* chunks;  // 2 cross_entropy_chunks doubles
};

struct CrossEntropyBwd {
  CrossEntropy of;
  const void* dloss;  // like loss
  const void *tops, *logs, *total;
  void* dx;              // [outer, n, inner], dtype, contiguous; or null
  void* dprobabilities;  // likewise
};

// Softmaxes whose losses one thread sums, the same for any number of threads: rows, or columns of one of `outer`.
constexpr int64_t kColumnsOfChunk = 64;
static inline int64_t cross_entropy_rows_of_chunk(int64_t n) { return n < 16384 ? 16384 / (n > 0 ? n : 1) : 1; }
static inline int64_t cross_entropy_chunks(int64_t outer, int64_t n, int64_t inner) {
  if (inner != 1) return outer * ((inner + kColumnsOfChunk - 1) / kColumnsOfChunk);
  const int64_t rows = cross_entropy_rows_of_chunk(n);
  return (outer + rows - 1) / rows;
}

// The same of nll_loss, which reads one score of each: of places in [outer, inner].
constexpr int64_t kPlacesOfChunk = 1024;
static inline int64_t nll_loss_chunks(int64_t outer, int64_t inner) {
  return (outer * inner + kPlacesOfChunk - 1) / kPlacesOfChunk;
}

// Of a softmax of which some scores were seen: the largest, `top`, sum exp(x - top), sum q and sum q (x - top), and the
// score of the target, once it was among them.
struct RowSums {
  double top, sum, mass, moment, score;
};

// Cross entropy of scores that are never all there: x of `of` is a block, [outer, classes] contiguous, of the classes
// [first, first + classes) of n. Its blocks come one after the other, from first = 0 on: `begin` once, `sums` of each
// block, `losses` when all classes of some rows were seen, and `gradients`, which take the place of a block's scores.
struct LinearCrossEntropy {
  CrossEntropy of;  // inner is 1, probabilities null
  int64_t first, classes;
  RowSums* sums;      // [outer]
  void* loss;         // loss_dtype: [outer], or one number
  void *tops, *logs;  // [outer], accumulation type, as of CrossEntropyFwd
  void* total;        // one number, accumulation type: what a mean divides by
  double* sum;        // the losses so far
  const void* dloss;  // like loss; null: 1
};

// x *= by
struct LossScale {
  void* x;  // [count], dtype
  int64_t count;
  double by;
  Dtype dtype;
};
