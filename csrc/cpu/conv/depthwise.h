// Depthwise convolution: channels of the result read one channel, through kernels of their own. They are a translation
// unit apart, depthwise.cpp, because they are half of what this family compiles.
#pragma once
#include "finish.h"
#include "problem.h"

namespace PF_ISA::conv {

constexpr int64_t kMaxDepthwiseRows = 8;  // channels of the result that read one channel

// Of one group each. by_rows: channels are adjacent in the result, and with read_channel 1 in what is read beside the
// weight.
template <class S>
bool is_depthwise(const Correlation<S>& p, bool by_rows, int64_t read_channel) {
  if (p.channels != 1 || p.rows > kMaxDepthwiseRows || p.has_style) return false;
  return !by_rows || p.groups > 1 || (p.rows == 1 && read_channel == 1);
}

// Are two phases of the input's gradient, whose columns lie in turn, computed together?
template <class S>
bool depthwise_takes_phases(const Correlation<S>* phases, int64_t count, bool by_rows);

// One sum, or such phases.
template <class S>
void depthwise_product(const Correlation<S>* phases, int64_t count, bool by_rows, void* workspace,
                       const FinishRows<S>& finish, int num_threads);
template <class S>
int64_t depthwise_bytes(const Correlation<S>* phases, int64_t count, bool by_rows, int num_threads);

// The gradient of the weight; `dy` lies in the place of the forward's result.
template <class S>
void depthwise_weight_grad(const Correlation<S>& forward, const S* dy, bool by_rows, S* dweight, void* workspace,
                           int num_threads);
template <class S>
int64_t depthwise_weight_grad_bytes(const Correlation<S>& forward, bool by_rows, int num_threads);

}  // namespace PF_ISA::conv
