// Convolution: the three operations, each by columns or by rows as its tensors lie, or channel by channel (depthwise).
#include "depthwise_weight_grad.h"
#include "weight_grad.h"
#include "winograd.h"

namespace PF_ISA::conv {

namespace {

// Channels of what is written are adjacent: as columns they leave in whole vectors.
PF_INLINE bool has_adjacent_channels(const ConvStrides& s, int64_t channels) { return s.channel == 1 && channels > 1; }

constexpr int64_t kMaxDepthwiseRows = 8;  // channels of the result that read one channel

enum Method { kByColumns, kByRows, kWinogradColumns, kWinogradRows, kDepthwisePlanes, kDepthwiseRows };

template <class S>
Method method_of(const Correlation<S>& p, ConvAlgorithm algorithm) {
  const bool by_rows = has_adjacent_channels(p.to_stride, p.groups * p.rows);
  if (algorithm == ConvAlgorithm::winograd) return by_rows ? kWinogradRows : kWinogradColumns;
  if (p.channels == 1 && p.rows <= kMaxDepthwiseRows) {
    if (by_rows && p.rows == 1 && p.from_stride.channel == 1) return kDepthwiseRows;
    if (!by_rows || p.groups > 1) return kDepthwisePlanes;
  }
  return by_rows ? kByRows : kByColumns;
}

template <class S>
void product(const Correlation<S>& p, ConvAlgorithm algorithm, void* workspace, const FinishRows<S>& finish,
             int num_threads) {
  switch (method_of(p, algorithm)) {
    case kByColumns: return columns_product(&p, 1, workspace, finish, num_threads);
    case kByRows: return rows_product(p, workspace, finish, num_threads);
    case kWinogradColumns: return winograd_product(p, false, workspace, finish, num_threads);
    case kWinogradRows: return winograd_product(p, true, workspace, finish, num_threads);
    case kDepthwisePlanes: return depthwise_planes(p, workspace, finish, num_threads);
    case kDepthwiseRows: return depthwise_rows(p, workspace, finish, num_threads);
  }
}

template <class S>
int64_t bytes_of(const Correlation<S>& p, ConvAlgorithm algorithm, int num_threads) {
  switch (method_of(p, algorithm)) {
    case kByColumns: return ColumnsPlan<S>::plan(&p, 1, num_threads).bytes();
    case kByRows: return RowsPlan<S>::plan(p, num_threads).bytes();
    case kWinogradColumns: return WinogradPlan<S>::plan(p, false, num_threads).bytes();
    case kWinogradRows: return WinogradPlan<S>::plan(p, true, num_threads).bytes();
    case kDepthwisePlanes: return DepthwisePlanesPlan<S>(p, num_threads).bytes();
    case kDepthwiseRows: return DepthwiseRowsPlan<S>::plan(p, num_threads).bytes();
  }
  return 0;
}

// In the gradient of the weight the steps of the forward's sum are columns: are their vectors of channels or of places?
PF_INLINE bool weight_grad_has_planes(const Conv& p) {
  return !has_adjacent_channels(p.x_stride, p.shape.groups * p.shape.in_channels);
}

template <class S>
Method weight_grad_method_of(const Conv& p) {
  const Correlation<S> forward = forward_of<S>(p);
  const bool has_planes = weight_grad_has_planes(p);
  if (forward.channels == 1 && forward.rows <= kMaxDepthwiseRows) {
    if (!has_planes && forward.rows == 1 && p.y_stride.channel == 1) return kDepthwiseRows;
    if (has_planes || forward.groups > 1) return kDepthwisePlanes;
  }
  return has_planes ? kByColumns : kByRows;
}

}  // namespace

void fwd(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    for_finish<S>(p, [&](const auto& finish) {
      product(forward_of<S>(p), p.algorithm, p.workspace, FinishRows<S>(finish), num_threads);
    });
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
    const Finish<S, NoActivation> plain = {nullptr, (const S*)p.bias, nullptr, (S*)p.x, nullptr, {}};
    const FinishRows<S> finish(plain);
    for_phases<S>(p, [&](const Correlation<S>* phases, int64_t count) {
      if (method_of(phases[0], p.algorithm) == kByColumns)
        return columns_product(phases, count, p.workspace, finish, num_threads);
      for (int64_t i = 0; i < count; i++) product(phases[i], p.algorithm, p.workspace, finish, num_threads);
    });
  });
}

void input_grad_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    *p.workspace_bytes = 0;
    for_phases<S>(p.conv, [&](const Correlation<S>* phases, int64_t count) {
      auto takes = [&](int64_t bytes) { *p.workspace_bytes = max_of(*p.workspace_bytes, bytes); };
      if (method_of(phases[0], p.conv.algorithm) == kByColumns)
        return takes(ColumnsPlan<S>::plan(phases, count, num_threads).bytes());
      for (int64_t i = 0; i < count; i++) takes(bytes_of(phases[i], p.conv.algorithm, num_threads));
    });
  });
}

void weight_grad(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Correlation<S> forward = forward_of<S>(p);
    const ConvStrides& dy = p.y_stride;
    const DepthwiseGradient<S> gradient = {(const S*)p.y, dy};
    switch (weight_grad_method_of<S>(p)) {
      case kDepthwisePlanes:
        return depthwise_planes_weight_grad(forward, gradient, (S*)p.weight, p.workspace, num_threads);
      case kDepthwiseRows: return depthwise_rows_weight_grad(forward, gradient, (S*)p.weight, p.workspace, num_threads);
      default: break;
    }
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
    const Correlation<S> forward = forward_of<S>(p.conv);
    switch (weight_grad_method_of<S>(p.conv)) {
      case kDepthwisePlanes: *p.workspace_bytes = PlanesGradPlan<S>(forward, num_threads).bytes(); break;
      case kDepthwiseRows: *p.workspace_bytes = RowsGradPlan<S>(forward, num_threads).bytes(forward); break;
      default:
        *p.workspace_bytes = WeightGradPlan<S>::plan(forward, weight_grad_has_planes(p.conv), num_threads).bytes();
    }
  });
}

}  // namespace PF_ISA::conv
