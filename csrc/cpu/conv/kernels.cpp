// Convolution: the three operations, each by columns or by rows as its tensors lie, by lines where there are few
// channels, or channel by channel (depthwise).
#include "depthwise.h"
#include "lines_weight_grad.h"
#include "winograd_weight_grad.h"

namespace PF_ISA::conv {

namespace {

// Channels of what is written are adjacent: as columns they leave in whole vectors.
PF_INLINE bool has_adjacent_channels(const ConvStrides& s, int64_t channels) { return s.channel == 1 && channels > 1; }

template <class S>
PF_INLINE bool is_by_rows(const Correlation<S>& p) {
  return has_adjacent_channels(p.to_stride, p.groups * p.rows);
}

enum Method { kByColumns, kByRows, kByLines, kDepthwise };

template <class S>
Method method_of(const Correlation<S>& p) {
  const bool by_rows = is_by_rows(p);
  if (has_lines(p) && !p.has_style) return kByLines;
  if (is_depthwise(p, by_rows, p.from_stride.channel)) return kDepthwise;
  return by_rows ? kByRows : kByColumns;
}

// f(phases, count): as many phases of the input's gradient as its algorithm and method take at once.
template <class S, class F>
void for_products(const Conv& p, F f) {
  for_phases<S>(p, [&](const Correlation<S>* phases, int64_t count) {
    if (p.algorithm != ConvAlgorithm::direct) {
      for (int64_t i = 0; i < count; i++) f(phases + i, 1);
      return;
    }
    const Method method = method_of(phases[0]);
    const bool in_turn =
        method == kByColumns || (method == kDepthwise && depthwise_takes_phases(phases, count, is_by_rows(phases[0])));
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
    case kByLines: return lines_product(p, is_by_rows(p), packed, workspace, finish, num_threads);
    case kDepthwise: return depthwise_product(phases, count, is_by_rows(p), workspace, finish, num_threads);
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
    case kDepthwise: return {0, depthwise_bytes(phases, count, is_by_rows(p), num_threads)};
  }
  return {};
}

// f(transforms, by rows?) where the algorithm is one of them and S is float.
template <class S, class F>
bool for_winograd(const Correlation<S>& p, ConvAlgorithm algorithm, F f) {
  if constexpr (std::is_same<S, float>::value) {
    const bool by_rows = is_by_rows(p);
    if (algorithm == ConvAlgorithm::winograd_2x2)
      return p.axes[2].taps == 2 ? by_rows && f(TwoResultsOfTwo{}, by_rows) : f(TwoResults{}, by_rows);
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
  if (is_depthwise(forward, !has_planes, p.y_stride.channel)) return kDepthwise;
  return has_planes ? kByColumns : kByRows;
}

// f() where the gradient of the weight is computed by F(2x2, 3x3): channels are adjacent in x and in dy.
template <class S, class F>
bool for_winograd_weight_grad(const Conv& p, F f) {
  if constexpr (std::is_same<S, float>::value) {
    if (p.algorithm == ConvAlgorithm::winograd_2x2 && p.x_stride.channel == 1 && p.y_stride.channel == 1 &&
        weight_grad_method_of<S>(p) != kDepthwise && forward_of<S>(p).positions() > 0)
      return f();
  }
  return false;
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
    const Method method = weight_grad_method_of<S>(p);
    if (method == kDepthwise)
      return depthwise_weight_grad(forward, (const S*)p.y, !weight_grad_has_planes(p), (S*)p.weight, p.workspace,
                                   num_threads);
    const bool has_planes = method == kByColumns;
    const int64_t taps = forward.taps(), height = forward.axes[1].taps, width = forward.axes[2].taps;
    auto dweight_at = [&](int64_t column) {
      const int64_t tap = has_planes ? column % taps : column / forward.channels;
      const int64_t channel = has_planes ? column / taps : column % forward.channels;
      return channel * forward.weight_channel +
             forward.weight_at(tap / width / height, tap / width % height, tap % width);
    };
    if (for_winograd_weight_grad<S>(p, [&] {
          return winograd_weight_grad<TwoResults>(forward, (const S*)p.y, dy, (S*)p.weight, p.workspace, num_threads);
        }))
      return;
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
      case kDepthwise:
        *p.workspace_bytes = depthwise_weight_grad_bytes(forward, !weight_grad_has_planes(p.conv), num_threads);
        break;
      case kByLines: *p.workspace_bytes = LinesGradPlan<S>(forward, num_threads).bytes(); break;
      default:
        *p.workspace_bytes = WeightGradPlan<S>::plan(forward, weight_grad_has_planes(p.conv), num_threads).bytes();
    }
    for_winograd_weight_grad<S>(p.conv, [&] {
      *p.workspace_bytes = max_of(*p.workspace_bytes, WinogradGradPlan<TwoResults, S>(forward, num_threads).bytes());
      return true;
    });
  });
}

}  // namespace PF_ISA::conv
