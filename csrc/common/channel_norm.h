// Norms of tensors with channels: BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167), GroupNorm (Wu & He 2018,
// arXiv:1803.08494) and InstanceNorm (Ulyanov et al. 2016, arXiv:1607.08022), with a residual sum and an activation
// behind them. A unit is what shares a mean and a deviation: a channel of all samples, or a group of channels of one
// sample, a single one in InstanceNorm.
#pragma once
#include <stdint.h>

#include "activation.h"
#include "dtype.h"

// How the activation comes: none; those that most norms have behind them, in registers; any other, over a piece in the
// cache.
enum class Ending : int32_t { none = 0, relu = 1, silu = 2, table = 3 };
constexpr int kEndings = 4;

struct ChannelNormShape {
  int64_t batch, channels, positions;
  int64_t groups;  // of the channels of a sample; 0: units are the channels of all samples
  bool is_last;    // in memory [batch, positions, channels], else [batch, channels, positions]
  Dtype dtype;
};

struct ChannelNormFwd {
  ChannelNormShape shape;
  const void* x;             // dtype, dense
  const void* residual;      // like x, or null
  const void* weight;        // [channels], type of mean, or null
  const void* bias;          // [channels], type of mean, or null
  const void* running_mean;  // [channels], type of mean; null with running_var: nothing is tracked
  const void* running_var;   // [channels], type of mean
  void* y;                   // like x
  void* mean;                // [units], float, double for double
  void* rstd;                // [units], type of mean
  void* new_running_mean;    // [channels], type of mean; null where nothing is tracked, or nothing changes
  void* new_running_var;     // [channels], type of mean
  void* workspace;           // ChannelNormPlan::bytes, 64-byte aligned
  bool uses_input;           // statistics of x; else those that are tracked, with groups 0
  double momentum, eps;
  Ending ending;
  Activation activation;
};

struct ChannelNormBwd {
  ChannelNormShape shape;
  const void* dy;        // like x
  const void* x;         // dtype, dense
  const void* residual;  // like x, or null
  const void* weight;    // [channels], type of mean, or null
  const void* bias;      // [channels], type of mean, or null
  const void* mean;      // [units], float, double for double
  const void* rstd;      // [units], type of mean
  void* dx;              // like x; or null: not wanted
  void* dresidual;       // like x; or null
  void* dweight;         // [channels], type of mean; or null
  void* dbias;           // [channels], type of mean; or null
  void* workspace;       // ChannelNormPlan::bytes, 64-byte aligned
  bool uses_input;       // mean and rstd are functions of x
  Ending ending;
  Activation activation;
  bool saves_output;  // the derivative is a function of the activation's output, not of its input
};

// Of what arrives at the gradients that ChannelNormBwd writes: what arrives at what it reads, but for the statistics,
// which are functions of x, or constants.
struct ChannelNormBwdBwd {
  ChannelNormShape shape;
  const void* ddx;         // like x, or null: nothing arrives there
  const void* ddresidual;  // like x, or null
  const void* ddweight;    // [channels], type of mean, or null
  const void* ddbias;      // [channels], type of mean, or null
  const void* dy;          // like x; this and the next six as in ChannelNormBwd
  const void* x;
  const void* residual;
  const void* weight;
  const void* bias;
  const void* mean;
  const void* rstd;
  void* ddy;        // like x; or null: not wanted
  void* dx;         // like x; or null
  void* dresidual;  // like x; or null
  void* dweight;    // [channels], type of mean; or null
  void* dbias;      // [channels], type of mean; or null
  void* workspace;  // ChannelNormPlan::bytes with kChannelNormSecondRoom, 64-byte aligned
  bool uses_input;
  Ending ending;
  Activation activation;
  bool is_curved;  // has the activation a second derivative
};

// What a pass of reduction leaves in the workspace.
struct ChannelNormRoom {
  int64_t sums, of_unit;    // doubles for each channel of each sample, and for each unit
  int64_t tables, partial;  // rows of a matrix, and of a block of it
};
constexpr int64_t kChannelTables = 7, kChannelPartial = 4;
constexpr int64_t kChannelSecondSums = 10, kChannelSecondUnit = 5, kChannelSecondTables = 10;
constexpr ChannelNormRoom kChannelNormRoom = {2, 2, kChannelTables, kChannelPartial};
constexpr ChannelNormRoom kChannelNormSecondRoom = {kChannelSecondSums, kChannelSecondUnit, kChannelSecondTables,
                                                    kChannelSecondSums};

// How the work is cut, from the sizes alone, so that a result does not depend on the number of threads; and where in
// the workspace its parts lie, in bytes.
struct ChannelNormPlan {
  int64_t samples, rows;       // of matrices [rows, channels] where channels are last: one matrix for BatchNorm
  int64_t units, count;        // count: elements of a unit
  int64_t padded;              // channels, rounded up to whole vectors
  int64_t block_rows, blocks;  // of a matrix
  ChannelNormRoom room;
  int64_t sums, of_units, tables, partial, bytes;  // where each part begins, and the end
};

static inline int64_t channel_norm_take(int64_t* used, int64_t bytes) {
  int64_t at = *used;
  *used += (bytes + 63) / 64 * 64;
  return at;
}

static inline ChannelNormPlan channel_norm_plan(const ChannelNormShape& s, const ChannelNormRoom& room) {
  const int64_t itemsize = s.dtype == Dtype::f64 ? 8 : 4, channels = s.channels > 0 ? s.channels : 1;
  ChannelNormPlan plan;
  const bool is_one = s.is_last && s.groups == 0;
  plan.samples = is_one ? 1 : s.batch;
  plan.rows = is_one ? s.batch * s.positions : s.positions;
  plan.units = s.groups ? s.batch * s.groups : s.channels;
  plan.count = s.groups ? channels / s.groups * s.positions : s.batch * s.positions;
  plan.padded = (s.channels + 15) / 16 * 16;
  // Blocks stay in the second cache, and a float sums at most 128 values that are sums of four rows.
  int64_t rows = 32768 / channels / 4 * 4;
  plan.block_rows = rows < 32 ? 32 : rows > 512 ? 512 : rows;
  plan.blocks = s.is_last ? (plan.rows + plan.block_rows - 1) / plan.block_rows : 0;
  plan.room = room;
  plan.bytes = 0;
  plan.sums = channel_norm_take(&plan.bytes, plan.samples * s.channels * room.sums * 8);
  plan.of_units = channel_norm_take(&plan.bytes, plan.units * room.of_unit * 8);
  const int64_t row = s.is_last ? plan.samples * plan.padded * itemsize : 0;
  plan.tables = channel_norm_take(&plan.bytes, room.tables * row);
  plan.partial = channel_norm_take(&plan.bytes, plan.blocks * room.partial * row);
  return plan;
}
