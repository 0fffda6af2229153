// Activations over dense memory, forward, backward and the backward of that: each thread takes 16 bytes of a tensor. A
// GPU's memory is what they wait for: a kernel of float32 moves 8 or 12 bytes an element, and computes meanwhile.
#pragma once
#include "../../common/pointwise.h"
#include "../core/activations.h"
#include "../core/values.h"

namespace pf::cuda::pointwise {

namespace {

constexpr int kThreads = 128;

// The first element of this thread.
template <class T>
__device__ int64_t own_place() {
  return ((int64_t)blockIdx.x * kThreads + threadIdx.x) * kChunk<T>;
}

template <class T, class Act>
struct Forward : Kernel<kThreads> {
  __device__ void operator()(Act act, const T* x, T* y, int64_t n, bool is_aligned) const {
    const int64_t at = own_place<T>();
    if (at >= n) return;
    Acc<T> values[kChunk<T>];
    load_values(values, x + at, n - at, is_aligned);
    PF_UNROLL_ALL
    for (int i = 0; i < kChunk<T>; i++) values[i] = act.forward(values[i]);
    store_values(y + at, values, n - at, is_aligned);
  }
};

// saved: x or y, whichever the row of the table says.
template <class T, class Act>
struct Backward : Kernel<kThreads> {
  __device__ void operator()(Act act, const T* dy, const T* saved, T* dx, int64_t n, bool is_aligned) const {
    const int64_t at = own_place<T>();
    if (at >= n) return;
    Acc<T> gradient[kChunk<T>], of[kChunk<T>];
    load_values(gradient, dy + at, n - at, is_aligned);
    load_values(of, saved + at, n - at, is_aligned);
    PF_UNROLL_ALL
    for (int i = 0; i < kChunk<T>; i++) gradient[i] = act.backward(gradient[i], of[i]);
    store_values(dx + at, gradient, n - at, is_aligned);
  }
};

// ddx arrives at dx: ddy = ddx act'(saved), where ddy is not null, and dsaved = ddx dy act''(saved).
template <class T, class Act>
struct SecondBackward : Kernel<kThreads> {
  __device__ void operator()(Act act, const T* ddx, const T* dy, const T* saved, T* ddy, T* dsaved, int64_t n,
                             bool is_aligned) const {
    const int64_t at = own_place<T>();
    if (at >= n) return;
    Acc<T> arrives[kChunk<T>], gradient[kChunk<T>], of[kChunk<T>];
    load_values(arrives, ddx + at, n - at, is_aligned);
    load_values(gradient, dy + at, n - at, is_aligned);
    load_values(of, saved + at, n - at, is_aligned);
    PF_UNROLL_ALL
    for (int i = 0; i < kChunk<T>; i++) gradient[i] = act.double_backward(arrives[i], gradient[i], of[i]);
    if (ddy) {
      PF_UNROLL_ALL
      for (int i = 0; i < kChunk<T>; i++) arrives[i] = act.backward(arrives[i], of[i]);
      store_values(ddy + at, arrives, n - at, is_aligned);
    }
    store_values(dsaved + at, gradient, n - at, is_aligned);
  }
};

// Calls f(type of the elements, the activation, grid), where there is anything to do.
template <class Params, class F>
Status for_kernel(const Params& p, F f) {
  if (!p.n) return {nullptr};
  return for_dtype(p.dtype, [&](auto element) {
    using T = decltype(element);
    Status status = {nullptr};
    for_activation(p.activation,
                   [&](auto act) { status = f(element, act, dim3(blocks_for(p.n, (int64_t)kThreads * kChunk<T>))); });
    return status;
  });
}

}  // namespace

Status activation_fwd(const ActivationFwd& p, void* stream) {
  const bool aligned = is_aligned(p.x) && is_aligned(p.y);
  return for_kernel(p, [&](auto element, auto act, dim3 grid) {
    using T = decltype(element);
    return launch<Forward<T, decltype(act)>>(grid, 0, (Stream)stream, act, (const T*)p.x, (T*)p.y, p.n, aligned);
  });
}

Status activation_bwd(const ActivationBwd& p, void* stream) {
  const bool aligned = is_aligned(p.dy) && is_aligned(p.saved) && is_aligned(p.dx);
  return for_kernel(p, [&](auto element, auto act, dim3 grid) {
    using T = decltype(element);
    return launch<Backward<T, decltype(act)>>(grid, 0, (Stream)stream, act, (const T*)p.dy, (const T*)p.saved, (T*)p.dx,
                                              p.n, aligned);
  });
}

Status activation_bwd_bwd(const ActivationBwdBwd& p, void* stream) {
  const bool aligned =
      is_aligned(p.ddx) && is_aligned(p.dy) && is_aligned(p.saved) && is_aligned(p.ddy) && is_aligned(p.dsaved);
  return for_kernel(p, [&](auto element, auto act, dim3 grid) -> Status {
    using T = decltype(element);
    using Act = decltype(act);
    if constexpr (Act::kIsCurved)
      return launch<SecondBackward<T, Act>>(grid, 0, (Stream)stream, act, (const T*)p.ddx, (const T*)p.dy,
                                            (const T*)p.saved, (T*)p.ddy, (T*)p.dsaved, p.n, aligned);
    else
      return {"the derivative of this activation is flat"};
  });
}

}  // namespace pf::cuda::pointwise
