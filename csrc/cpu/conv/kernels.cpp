// Convolution: the three operations, each by columns or by rows as its tensors lie, by lines where there are few
// channels, or channel by channel (depthwise).
#include "depthwise_phases.h"
#include "depthwise_squares_weight_grad.h"
#include "lines_weight_grad.h"
#include "weight_grad.h"
#include "winograd.h"

namespace PF_ISA::conv {

namespace {

// Channels of what is written are adjacent: as columns they leave in whole vectors.
PF_INLINE bool has_adjacent_channels(const ConvStrides& s, int64_t channels) { return s.channel == 1 && channels > 1; }

constexpr int64_t kMaxDepthwiseRows = 8;  // channels of the result that read one channel

enum Method { kByColumns, kByRows, kByLines, kDepthwisePlanes, kDepthwiseSquares, kDepthwiseRows, kDepthwiseChannels };

// Half types, whose results leave registers through a call, gain nothing from kDepthwiseChannels: Zen 4, one thread,
// 576 channels of 14x14 in bfloat16: 52 us by rows, 78 there.
template <class S>
Method method_of(const Correlation<S>& p) {
  const bool by_rows = has_adjacent_channels(p.to_stride, p.groups * p.rows);
  if (has_lines(p) && !p.has_style) return kByLines;
  if (p.channels == 1 && p.rows <= kMaxDepthwiseRows && !p.has_style) {
    if (by_rows && p.rows == 1 && p.from_stride.channel == 1)
      return FinishRows<S>::kIsSummedType && is_3x3_of_channels(p) ? kDepthwiseChannels : kDepthwiseRows;
    if (!by_rows || p.groups > 1) return is_square(p) ? kDepthwiseSquares : kDepthwisePlanes;
  }
  return by_rows ? kByRows : kByColumns;
}

// f(phases, count): as many phases of the input's gradient as its method takes at once.
template <class S, class F>
void for_products(const Conv& p, F f) {
  for_phases<S>(p, [&](const Correlation<S>* phases, int64_t count) {
    const Method method = method_of(phases[0]);
    const bool in_turn = method == kByColumns || (method == kDepthwisePlanes && are_plane_phases(phases, count));
    const int64_t at_once = in_turn ? count : 1;
    for (int64_t i = 0; i < count; i += at_once) f(phases + i, at_once);
  });
}

// Tap by tap.
template <class S>
void direct(const Correlation<S>* phases, int64_t count, PackedWeight packed, void* workspace,
            const FinishRows<S>& finish, int num_threads) {
  const Correlation<S>& p = phases[0];
  switch (method_of(p)) {
    case kByColumns: return columns_product(phases, count, packed, workspace, finish, num_threads);
    case kByRows: return rows_product(p, packed, workspace, finish, num_threads);
    case kByLines: {
      const bool by_rows = has_adjacent_channels(p.to_stride, p.groups * p.rows);
      return lines_product(p, by_rows, packed, workspace, finish, num_threads);
    }
    case kDepthwisePlanes:
      if (count > 1) return depthwise_plane_phases(phases, workspace, finish, num_threads);
      return depthwise_planes(p, workspace, finish, num_threads);
    case kDepthwiseSquares: return depthwise_squares(p, workspace, finish, num_threads);
    case kDepthwiseRows: return depthwise_rows(p, workspace, finish, num_threads);
    case kDepthwiseChannels:
      if constexpr (FinishRows<S>::kIsSummedType) return depthwise_channels(p, workspace, finish, num_threads);
  }
}

struct Bytes {
  int64_t packed, workspace;
};

template <class Plan>
Bytes bytes_with_weight(const Plan& plan) {
  return {round_up(plan.packed_bytes, 64), plan.bytes()};
}

template <class S>
Bytes bytes_of_direct(const Correlation<S>* phases, int64_t count, int num_threads) {
  const Correlation<S>& p = phases[0];
  switch (method_of(p)) {
    case kByColumns: return bytes_with_weight(ColumnsPlan<S>::plan(phases, count, num_threads));
    case kByRows: return bytes_with_weight(RowsPlan<S>::plan(p, num_threads));
    case kByLines: return bytes_with_weight(LinesPlan<S>(p, num_threads));
    case kDepthwisePlanes:
      if (count > 1) return {0, PlanePhasesPlan<S>(phases, num_threads).bytes()};
      return {0, DepthwisePlanesPlan<S>(p, num_threads).bytes()};
    case kDepthwiseSquares: return {0, DepthwiseSquaresPlan<S>(p, num_threads).bytes()};
    case kDepthwiseRows: return {0, DepthwiseRowsPlan<S>::plan(p, num_threads).bytes()};
    case kDepthwiseChannels: return {0, DepthwiseChannelsPlan<S>(p, num_threads).bytes()};
  }
  return {};
}

// f(transforms, by rows?) where the algorithm is one of them and S is float.
template <class S, class F>
bool for_winograd(const Correlation<S>& p, ConvAlgorithm algorithm, F f) {
  if constexpr (std::is_same<S, float>::value) {
    const bool by_rows = has_adjacent_channels(p.to_stride, p.groups * p.rows);
    if (algorithm == ConvAlgorithm::winograd_2x2) return f(TwoResults{}, by_rows);
    if (algorithm == ConvAlgorithm::winograd_4x4) return f(FourResults{}, by_rows);
  }
  return false;
}

template <class S>
Bytes bytes_of(const Correlation<S>* phases, int64_t count, ConvAlgorithm algorithm, int num_threads) {
  Bytes bytes = bytes_of_direct(phases, count, num_threads);
  for_winograd(phases[0], algorithm, [&](auto transforms, bool by_rows) {
    const int64_t tap_by_tap = bytes.packed + bytes.workspace;  // where results are not finite
    bytes = bytes_with_weight(WinogradPlan<decltype(transforms), S>::plan(phases[0], by_rows, num_threads));
    bytes.workspace = max_of(bytes.workspace, tap_by_tap);
    return true;
  });
  return bytes;
}

template <class S>
void product(const Correlation<S>* phases, int64_t count, ConvAlgorithm algorithm, PackedWeight packed, void* workspace,
             const FinishRows<S>& finish, int num_threads) {
  bool is_winograd = false;
  const bool is_done = for_winograd(phases[0], algorithm, [&](auto transforms, bool by_rows) {
    is_winograd = true;
    return winograd_product<decltype(transforms)>(phases[0], by_rows, packed, workspace, finish, num_threads);
  });
  if (is_done) return;
  if (is_winograd) {
    packed = {workspace, false};
    workspace = (char*)workspace + bytes_of_direct(phases, count, num_threads).packed;
  }
  direct(phases, count, packed, workspace, finish, num_threads);
}

// In the gradient of the weight the steps of the forward's sum are columns: are their vectors of channels or of places?
PF_INLINE bool weight_grad_has_planes(const Conv& p) {
  return !has_adjacent_channels(p.x_stride, p.shape.groups * p.shape.in_channels);
}

template <class S>
Method weight_grad_method_of(const Conv& p) {
  const Correlation<S> forward = forward_of<S>(p);
  const bool has_planes = weight_grad_has_planes(p);
  const bool has_long_runs = !has_planes && forward.axes[2].taps * forward.channels > kMaxGradRun;
  if (has_lines(forward) && !has_long_runs) return kByLines;
  if (forward.channels == 1 && forward.rows <= kMaxDepthwiseRows) {
    if (!has_planes && forward.rows == 1 && p.y_stride.channel == 1)
      return is_3x3_of_channels(forward) ? kDepthwiseChannels : kDepthwiseRows;
    if (has_planes && p.y_stride.spatial[2] == 1 && is_3x3(forward)) return kDepthwiseSquares;
    if (has_planes || forward.groups > 1) return kDepthwisePlanes;
  }
  return has_planes ? kByColumns : kByRows;
}

}  // namespace

void fwd(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Correlation<S> forward = forward_of<S>(p);
    for_finish<S>(p, [&](const auto& finish) {
      product(&forward, 1, p.algorithm, {p.packed, p.is_packed}, p.workspace, FinishRows<S>(finish), num_threads);
    });
  });
}

void fwd_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Correlation<S> forward = forward_of<S>(p.conv);
    const Bytes bytes = bytes_of(&forward, 1, p.conv.algorithm, num_threads);
    *p.packed_bytes = bytes.packed;
    *p.workspace_bytes = bytes.workspace;
  });
}

void input_grad(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Finish<S, NoActivation> plain = {nullptr, (const S*)p.bias, nullptr, (S*)p.x, nullptr, {}};
    const FinishRows<S> finish(plain);
    char* packed = (char*)p.packed;
    for_products<S>(p, [&](const Correlation<S>* phases, int64_t count) {
      product(phases, count, p.algorithm, {packed, p.is_packed}, p.workspace, finish, num_threads);
      packed += bytes_of(phases, count, p.algorithm, num_threads).packed;
    });
  });
}

void input_grad_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    *p.packed_bytes = *p.workspace_bytes = 0;
    for_products<S>(p.conv, [&](const Correlation<S>* phases, int64_t count) {
      const Bytes bytes = bytes_of(phases, count, p.conv.algorithm, num_threads);
      *p.packed_bytes += bytes.packed;
      *p.workspace_bytes = max_of(*p.workspace_bytes, bytes.workspace);
    });
  });
}

void weight_grad(const Conv& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Correlation<S> forward = forward_of<S>(p);
    const ConvStrides& dy = p.y_stride;
    const DepthwiseGradient<S> gradient = {(const S*)p.y, dy};
    const Method method = weight_grad_method_of<S>(p);
    switch (method) {
      case kDepthwisePlanes:
        return depthwise_planes_weight_grad(forward, gradient, (S*)p.weight, p.workspace, num_threads);
      case kDepthwiseSquares:
        return depthwise_squares_weight_grad(forward, gradient, (S*)p.weight, p.workspace, num_threads);
      case kDepthwiseChannels:
        return depthwise_channels_weight_grad(forward, gradient, (S*)p.weight, p.workspace, num_threads);
      case kDepthwiseRows: return depthwise_rows_weight_grad(forward, gradient, (S*)p.weight, p.workspace, num_threads);
      default: break;
    }
    const bool has_planes = method == kByColumns;
    const int64_t taps = forward.taps(), height = forward.axes[1].taps, width = forward.axes[2].taps;
    auto dweight_at = [&](int64_t column) {
      const int64_t tap = has_planes ? column % taps : column / forward.channels;
      const int64_t channel = has_planes ? column / taps : column % forward.channels;
      return channel * forward.weight_channel +
             forward.weight_at(tap / width / height, tap / width % height, tap % width);
    };
    if (method == kByLines)
      return lines_weight_grad(forward, (const S*)p.y, (S*)p.weight, dweight_at, p.workspace, num_threads);
    // dy is dense: its results follow one another at the last dimension's step.
    weight_grad_product<S>(forward, {(const S*)p.y, dy.outer, dy.channel, dy.spatial[2]}, (S*)p.weight,
                           forward.weight_row, forward.weight_group, dweight_at, has_planes, p.workspace, num_threads);
  });
}

void weight_grad_sizes(const ConvSizes& p, int num_threads) {
  for_dtype(p.conv.dtype, [&](auto storage) {
    using S = decltype(storage);
    const Correlation<S> forward = forward_of<S>(p.conv);
    *p.packed_bytes = 0;
    switch (weight_grad_method_of<S>(p.conv)) {
      case kDepthwisePlanes: *p.workspace_bytes = PlanesGradPlan<S>(forward, num_threads).bytes(); break;
      case kDepthwiseSquares: *p.workspace_bytes = SquaresGradPlan(forward, num_threads).bytes(forward); break;
      case kDepthwiseRows:
      case kDepthwiseChannels: *p.workspace_bytes = RowsGradPlan<S>(forward, num_threads).bytes(forward); break;
      case kByLines: *p.workspace_bytes = LinesGradPlan<S>(forward, num_threads).bytes(); break;
      default:
        *p.workspace_bytes = WeightGradPlan<S>::plan(forward, weight_grad_has_planes(p.conv), num_threads).bytes();
    }
  });
}

}  // namespace PF_ISA::conv
