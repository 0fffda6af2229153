// Convolution: the three operations, each by columns or by rows as its tensors lie.
#include "weight_grad.h"
#include "winograd.h"

namespace PF_ISA::conv {

namespace {

// Channels of what is written are adjacent: as columns they leave in whole vectors.
PF_INLINE bool has_adjacent_channels(const ConvStrides& s, int64_t channels) { return s.channel == 1 && channels > 1; }

template <class S, class F>
void product(const Correlation<S>& p, ConvAlgorithm algorithm, void* workspace, const F& finish, int num_threads) {
  const bool by_rows = has_adjacent_channels(p.to_stride, p.groups * p.rows);
  if (algorithm == ConvAlgorithm::winograd)
    winograd_product(p, by_rows, workspace, finish, num_threads);
  else if (by_rows)
    rows_product(p, workspace, finish, num_threads);
  else
    columns_product(p, workspace, finish, num_threads);
}

template <class S>
int64_t bytes_of(const Correlation<S>& p, ConvAlgorithm algorithm, int num_threads) {
  const bool by_rows = has_adjacent_channels(p.to_stride, p.groups * p.rows);
  if (algorithm == ConvAlgorithm::winograd) return WinogradPlan<S>::plan(p, by_rows, num_threads).bytes();
  return by_rows ? RowsPlan<S>::plan(p, num_threads).bytes() : ColumnsPlan<S>::plan(p, num_threads).bytes();
}

// In the gradient of the weight the steps of the forward's sum are columns: are their vectors of channels or of places?
PF_INLINE bool weight_grad_has_planes(const Conv& p) {
  return !has_adjacent_channels(p.x_stride, p.shape.groups * p.shape.in_channels);
}

}  // namespace

void fwd(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_finish<S>(
        p, [&](const auto& finish) { product(forward_of<S>(p), p.algorithm, p.workspace, finish, num_threads); });
  });
}

void fwd_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    *p.workspace_bytes = bytes_of(forward_of<S>(p.conv), p.conv.algorithm, num_threads);
  });
}

void input_grad(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Finish<S, NoActivation> finish = {(const S*)p.bias, nullptr, (S*)p.x, nullptr, {}};
    for_phases<S>(p,
                  [&](const Correlation<S>& phase) { product(phase, p.algorithm, p.workspace, finish, num_threads); });
  });
}

void input_grad_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    *p.workspace_bytes = 0;
    for_phases<S>(p.conv, [&](const Correlation<S>& phase) {
      *p.workspace_bytes = max_of(*p.workspace_bytes, bytes_of(phase, p.conv.algorithm, num_threads));
    });
  });
}

void weight_grad(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Correlation<S> forward = forward_of<S>(p);
    const ConvStrides& dy = p.y_stride;
    const bool has_planes = weight_grad_has_planes(p);
    const int64_t taps = forward.taps(), height = forward.axes[1].taps, width = forward.axes[2].taps;
    auto dweight_at = [&](int64_t column) {
      const int64_t tap = has_planes ? column % taps : column / forward.channels;
      const int64_t channel = has_planes ? column / taps : column % forward.channels;
      return channel * forward.weight_channel +
             forward.weight_at(tap / width / height, tap / width % height, tap % width);
    };
    // dy is dense: its results follow one another at the last dimension's step.
    weight_grad_product<S>(forward, {(const S*)p.y, dy.outer, dy.channel, dy.spatial[2]}, (S*)p.weight,
                           forward.weight_row, forward.weight_group, dweight_at, has_planes, p.workspace, num_threads);
  });
}

void weight_grad_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    *p.workspace_bytes =
        WeightGradPlan<S>::plan(forward_of<S>(p.conv), weight_grad_has_planes(p.conv), num_threads).bytes();
  });
}

}  // namespace PF_ISA::conv
