// What the kernels of this family share around their loops: a head's keys and values, and which instance serves a call.
#pragma once
#include "../core/teams.h"
#include "scores.h"
#include "tiles.h"

namespace pf::cuda::attention {

namespace {

// The keys and values of one head of one sequence, and how they may be read.
template <class T>
struct KeyValues {
  const T *k, *v;
  int64_t k_stride, v_stride;
  Access of_k, of_v;

  __device__ __forceinline__ KeyValues(const Attention& p, const Sequence& s, int batch, int head, const Access& of_k,
                                       const Access& of_v)
      : k((const T*)p.k + batch * p.k_stride.dim[0] + head * p.k_stride.dim[1] + s.k_start * p.k_stride.dim[2]),
        v((const T*)p.v + batch * p.v_stride.dim[0] + head * p.v_stride.dim[1] + s.k_start * p.v_stride.dim[2]),
        k_stride(p.k_stride.dim[2]),
        v_stride(p.v_stride.dim[2]),
        of_k(of_k),
        of_v(of_v) {}

  // Keys, or values, from `first` on, of `keys`.
  template <int kRows, int kD>
  __device__ __forceinline__ void load_keys(T* to, int first, int keys, int columns) const {
    load_rows<kRows, kD>(to, k, k_stride, first, keys, columns, of_k);
  }
  template <int kRows, int kD>
  __device__ __forceinline__ void load_values(T* to, int first, int keys, int columns) const {
    load_rows<kRows, kD>(to, v, v_stride, first, keys, columns, of_v);
  }
};

// Calls f(an element, Number<the width of a tile>), which holds q's rows and v's.
template <class F>
Status for_width(const Attention& p, F f) {
  const int64_t width = p.E > p.Ev ? p.E : p.Ev;
  auto for_element = [&](auto element) -> Status {
    if (width <= 64) return f(element, Number<64>());
    if (width <= 128) return f(element, Number<128>());
    return f(element, Number<256>());
  };
  if (width > 256) return {"head_dim is more than 256"};
  if (p.dtype == Dtype::bf16) return for_element(bf16());
  if (p.dtype == Dtype::f16) return for_element(f16());
  return {"a type that is neither bfloat16 nor float16"};
}
// And Number<are the scores plain?>.
template <class F>
Status for_call(const Attention& p, F f) {
  return for_width(p, [&](auto element, auto d) -> Status {
    return is_plain(p) ? f(element, d, Number<1>()) : f(element, d, Number<0>());
  });
}

inline bool is_past_grid(int64_t tiles, int64_t heads) { return heads && tiles > 0x7fffffff / heads; }
constexpr Status kTooMany = {"more tiles than a grid has blocks"};

}  // namespace

}  // namespace pf::cuda::attention
