// Which depthwise kernel serves what.
#include "depthwise.h"

#include "depthwise_narrow.h"
#include "depthwise_phases.h"
#include "depthwise_squares_weight_grad.h"

namespace PF_ISA::conv {

namespace {

enum class Depthwise { planes, squares, narrow, rows, channels };

template <class S>
Depthwise kernel_of(const Correlation<S>& p, bool by_rows) {
  // Half types, whose results leave registers through a call, gain nothing from `channels`: Zen 4, one thread, 576
  // channels of 14x14 in bfloat16: 52 us by rows, 78 there.
  if (by_rows && p.rows == 1 && p.from_stride.channel == 1)
    return FinishRows<S>::kIsSummedType && is_square_of_channels(p) ? Depthwise::channels : Depthwise::rows;
  if (is_narrow(p)) return Depthwise::narrow;
  return is_square(p) ? Depthwise::squares : Depthwise::planes;
}

template <class S>
Depthwise weight_grad_kernel_of(const Correlation<S>& p, bool by_rows) {
  if (by_rows && p.rows == 1 && p.to_stride.channel == 1)
    return is_3x3_of_channels(p) ? Depthwise::channels : Depthwise::rows;
  return !by_rows && p.to_stride.spatial[2] == 1 && is_3x3(p) ? Depthwise::squares : Depthwise::planes;
}

}  // namespace

template <class S>
bool depthwise_takes_phases(const Correlation<S>* phases, int64_t count, bool by_rows) {
  return kernel_of(phases[0], by_rows) == Depthwise::planes && are_plane_phases(phases, count);
}

template <class S>
void depthwise_product(const Correlation<S>* phases, int64_t count, bool by_rows, void* workspace,
                       const FinishRows<S>& finish, int num_threads) {
  const Correlation<S>& p = phases[0];
  switch (kernel_of(p, by_rows)) {
    case Depthwise::planes:
      if constexpr (kHasFixedTaps<S>)
        if (count > 1) return depthwise_plane_phases(phases, workspace, finish, num_threads);
      return depthwise_planes(p, workspace, finish, num_threads);
    case Depthwise::squares:
      if constexpr (kHasFixedTaps<S>) return depthwise_squares(p, workspace, finish, num_threads);
      break;
    case Depthwise::narrow:
      if constexpr (kHasFixedTaps<S> && FinishRows<S>::kIsSummedType)
        return depthwise_narrow(p, workspace, finish, num_threads);
      break;
    case Depthwise::rows: return depthwise_rows(p, workspace, finish, num_threads);
    case Depthwise::channels:
      if constexpr (kHasFixedTaps<S> && FinishRows<S>::kIsSummedType)
        return depthwise_channels(p, workspace, finish, num_threads);
  }
}

template <class S>
int64_t depthwise_bytes(const Correlation<S>* phases, int64_t count, bool by_rows, int num_threads) {
  const Correlation<S>& p = phases[0];
  switch (kernel_of(p, by_rows)) {
    case Depthwise::planes:
      return count > 1 ? PlanePhasesPlan<S>(phases, num_threads).bytes()
                       : DepthwisePlanesPlan<S>(p, num_threads).bytes();
    case Depthwise::squares: return DepthwiseSquaresPlan<S>(p, num_threads).bytes();
    case Depthwise::narrow: return DepthwiseNarrowPlan<S>(p, num_threads).bytes();
    case Depthwise::rows: return DepthwiseRowsPlan<S>::plan(p, num_threads).bytes();
    case Depthwise::channels: return DepthwiseChannelsPlan<S>(p, num_threads).bytes();
  }
  return 0;
}

template <class S>
void depthwise_weight_grad(const Correlation<S>& p, const S* dy, bool by_rows, S* dweight, void* workspace,
                           int num_threads) {
  const DepthwiseGradient<S> gradient = {dy, p.to_stride};
  switch (weight_grad_kernel_of(p, by_rows)) {
    case Depthwise::planes: return depthwise_planes_weight_grad(p, gradient, dweight, workspace, num_threads);
    case Depthwise::squares:
      if constexpr (kHasFixedTaps<S>)
        return depthwise_squares_weight_grad(p, gradient, dweight, workspace, num_threads);
      break;
    case Depthwise::narrow: break;  // none of its own
    case Depthwise::rows: return depthwise_rows_weight_grad(p, gradient, dweight, workspace, num_threads);
    case Depthwise::channels:
      if constexpr (kHasFixedTaps<S>)
        return depthwise_channels_weight_grad(p, gradient, dweight, workspace, num_threads);
  }
}

template <class S>
int64_t depthwise_weight_grad_bytes(const Correlation<S>& p, bool by_rows, int num_threads) {
  switch (weight_grad_kernel_of(p, by_rows)) {
    case Depthwise::planes: return PlanesGradPlan<S>(p, num_threads).bytes();
    case Depthwise::squares: return SquaresGradPlan(p, num_threads).bytes(p);
    case Depthwise::narrow: break;
    case Depthwise::rows:
    case Depthwise::channels: return RowsGradPlan<S>(p, num_threads).bytes(p);
  }
  return 0;
}

#define PF_DEPTHWISE_OF(S)                                                                                 \
  template bool depthwise_takes_phases(const Correlation<S>*, int64_t, bool);                              \
  template void depthwise_product(const Correlation<S>*, int64_t, bool, void*, const FinishRows<S>&, int); \
  template int64_t depthwise_bytes(const Correlation<S>*, int64_t, bool, int);                             \
  template void depthwise_weight_grad(const Correlation<S>&, const S*, bool, S*, void*, int);              \
  template int64_t depthwise_weight_grad_bytes(const Correlation<S>&, bool, int);
PF_DEPTHWISE_OF(float)
PF_DEPTHWISE_OF(double)
PF_DEPTHWISE_OF(bf16)
PF_DEPTHWISE_OF(f16)
#undef PF_DEPTHWISE_OF

}  // namespace PF_ISA::conv
