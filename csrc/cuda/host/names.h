// The facade under a C++ compiler: CUDA's names, those that our kernels use, on host/runtime.h.
#pragma once
#include <math.h>
#include <string.h>

#include <string>
#include <tuple>

#include "../status.h"
#include "products.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define PF_UNROLL_ALL
#define PF_APART static __attribute__((noinline))
#define PF_UNROLL_BY(times)
#define threadIdx (::pf::cuda::host::current->index)
#define blockIdx (::pf::cuda::host::current->block_index)
#define gridDim (::pf::cuda::host::grid_size)
#define blockDim (::pf::cuda::host::block_size)

// A static of its own is the array's name: of each instance of a template another.
#define PF_SHARED(T, name, count)         \
  static const char pf_key_of_##name = 0; \
  T(&name)                                \
  [count] =                               \
      *reinterpret_cast<T(*)[count]>(::pf::cuda::host::shared_array(&pf_key_of_##name, sizeof(T) * (count), #name))
#define PF_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(::pf::cuda::host::dynamic_shared())

#define PF_HERE(name) \
  const ::pf::cuda::host::Place here { file, name, line }
#define PF_PLACE int line = __builtin_LINE(), const char *file = __builtin_FILE()

typedef ::pf::cuda::host::Size3 dim3;

template <class T, int n>
struct alignas(sizeof(T) * n) PfVector;
template <class T>
struct alignas(sizeof(T) * 2) PfVector<T, 2> {
  T x, y;
};
template <class T>
struct alignas(sizeof(T) * 4) PfVector<T, 4> {
  T x, y, z, w;
};
typedef PfVector<float, 2> float2;
typedef PfVector<float, 4> float4;
typedef PfVector<unsigned, 2> uint2;
typedef PfVector<unsigned, 4> uint4;

// ---- barriers, shuffles, votes

inline void __syncthreads(PF_PLACE) {
  PF_HERE("__syncthreads");
  ::pf::cuda::host::block_barrier(here);
}
inline int __syncthreads_or(int vote, PF_PLACE) {
  PF_HERE("__syncthreads_or");
  return ::pf::cuda::host::block_barrier(here, vote != 0) > 0;
}
inline int __syncthreads_count(int vote, PF_PLACE) {
  PF_HERE("__syncthreads_count");
  return ::pf::cuda::host::block_barrier(here, vote != 0);
}

// The one warp operation that orders memory.
inline void __syncwarp(unsigned mask = 0xffffffffu, PF_PLACE) {
  PF_HERE("__syncwarp");
  ::pf::cuda::host::warp_barrier(here, mask);
}

namespace pf::cuda::host {

template <class T>
struct Shuffled {
  T value, found;
  int source;
};

template <class T>
PF_UNWATCHED void give_shuffled(void* const* lanes, uint32_t mask) {
  for (int lane = 0; lane < 32; lane++) {
    if (!(mask >> lane & 1)) continue;
    Shuffled<T>& own = *(Shuffled<T>*)lanes[lane];
    if (!(mask >> own.source & 1))
      fail({"", "a shuffle", 0}, "lane %d reads of lane %d, which is outside of the mask %08x", lane, own.source, mask);
    own.found = ((const Shuffled<T>*)lanes[own.source])->value;
  }
}

template <class T>
T shuffle(const Place& at, unsigned mask, T value, int source) {
  Shuffled<T> own = {value, value, source};
  collective(at, mask, &own, give_shuffled<T>);
  return own.found;
}

PF_UNWATCHED inline void give_ballot(void* const* lanes, uint32_t mask) {
  uint32_t votes = 0;
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1 && *(uint32_t*)lanes[lane]) votes |= 1u << lane;
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1) *(uint32_t*)lanes[lane] = votes;
}
inline uint32_t ballot(const Place& at, unsigned mask, bool vote) {
  uint32_t own = vote;
  collective(at, mask, &own, give_ballot);
  return own;
}

// The lane `apart` further in a row of `width` lanes, or this one where the row ends.
inline int lane_at(int lane, int apart, int width) {
  const int place = lane % width + apart;
  return place < 0 || place >= width ? lane : lane + apart;
}

}  // namespace pf::cuda::host

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, PF_PLACE) {
  PF_HERE("__shfl_sync");
  const int lane = ::pf::cuda::host::current->lane;
  return ::pf::cuda::host::shuffle(here, mask, value, lane / width * width + (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned apart, int width = 32, PF_PLACE) {
  PF_HERE("__shfl_up_sync");
  const int lane = ::pf::cuda::host::current->lane;
  return ::pf::cuda::host::shuffle(here, mask, value, ::pf::cuda::host::lane_at(lane, -(int)apart, width));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned apart, int width = 32, PF_PLACE) {
  PF_HERE("__shfl_down_sync");
  const int lane = ::pf::cuda::host::current->lane;
  return ::pf::cuda::host::shuffle(here, mask, value, ::pf::cuda::host::lane_at(lane, (int)apart, width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int apart, int width = 32, PF_PLACE) {
  PF_HERE("__shfl_xor_sync");
  const int lane = ::pf::cuda::host::current->lane, other = lane ^ apart;
  return ::pf::cuda::host::shuffle(here, mask, value, other / width > lane / width ? lane : other);
}
inline unsigned __ballot_sync(unsigned mask, int vote, PF_PLACE) {
  PF_HERE("__ballot_sync");
  return ::pf::cuda::host::ballot(here, mask, vote != 0);
}
inline int __any_sync(unsigned mask, int vote, PF_PLACE) {
  PF_HERE("__any_sync");
  return ::pf::cuda::host::ballot(here, mask, vote != 0) != 0;
}
inline int __all_sync(unsigned mask, int vote, PF_PLACE) {
  PF_HERE("__all_sync");
  return ::pf::cuda::host::ballot(here, mask, vote != 0) == mask;
}

// ---- memory and numbers

// One thread of the system runs them all, and none is left inside of these.
template <class T>
T atomicAdd(T* at, T value) {
  const T old = *at;
  *at = old + value;
  ::pf::cuda::host::made_progress();
  return old;
}
template <class T>
T atomicMax(T* at, T value) {
  const T old = *at;
  *at = old < value ? value : old;
  ::pf::cuda::host::made_progress();
  return old;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float normcdff(float x) { return (float)(0.5 * erfc(x * -0.70710678118654752440)); }
inline double normcdf(double x) { return 0.5 * erfc(x * -0.70710678118654752440); }
// Products that are rounded before anything is added to them.
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

namespace pf::cuda {

struct tf32 {
  uint32_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest < 0x400u) return sign ? -(float)rest * 0x1p-24f : (float)rest * 0x1p-24f;
  return __uint_as_float(sign | (rest >= 0x7c00u ? 0x7f800000u | (rest & 0x3ffu) << 13 : (rest << 13) + (112u << 23)));
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
template <>
inline f16 from_float<f16>(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (x != x) return {(uint16_t)(sign | 0x7e00u)};
  if (rest >= 0x477ff000u) return {(uint16_t)(sign | 0x7c00u)};  // 65520 and more
  if (rest < 0x38800000u)                                        // in units of the smallest; an addition rounds
    return {(uint16_t)(sign | (__float_as_uint(__uint_as_float(rest) + 0.5f) - __float_as_uint(0.5f)))};
  return {(uint16_t)(sign | ((rest + 0xfffu + (rest >> 13 & 1)) - (112u << 23)) >> 13)};
}
// To nearest, ties away from zero, as cvt.rna.
template <>
inline tf32 from_float<tf32>(float x) {
  const uint32_t bits = __float_as_uint(x);
  return {x - x == 0 ? (bits + 0x1000u) & ~0x1fffu : bits};
}

// Two of them, the first in the lower half.
template <class T>
uint32_t pair_of(float low, float high) {
  return (uint32_t)from_float<T>(low).bits | (uint32_t)from_float<T>(high).bits << 16;
}

inline float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

// ---- several elements at once

template <class V>
const V* as_vector(const void* at, PF_PLACE) {
  PF_HERE("as_vector");
  if ((uintptr_t)at % alignof(V)) host::fail(here, "an address, %p, that is not aligned to %zu bytes", at, alignof(V));
  return static_cast<const V*>(at);
}
template <class V>
V* as_vector(void* at, PF_PLACE) {
  return const_cast<V*>(as_vector<V>((const void*)at, line, file));
}

// ---- memory between blocks

inline uint32_t load_acquire(const uint32_t* flag, PF_PLACE) {
  PF_HERE("load_acquire");
  host::spin(here);
  return __atomic_load_n(flag, __ATOMIC_ACQUIRE);  // as a race detector knows it
}
inline void add_release(uint32_t* flag, uint32_t value) {
  __atomic_fetch_add(flag, value, __ATOMIC_RELEASE);
  host::made_progress();
}

// ---- copies from global to shared memory

// Word by word: a race detector sees plain stores.
inline void perform(const host::AsyncCopy& copy) {
  for (int i = 0; i < copy.bytes / 4; i++)
    ((uint32_t*)copy.to)[i] = copy.is_inside ? ((const uint32_t*)copy.from)[i] : 0;
}
template <int kBytes>
void copy_async(void* to, const void* from, bool is_inside = true, PF_PLACE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  PF_HERE("copy_async");
  if ((uintptr_t)to % kBytes || (is_inside && (uintptr_t)from % kBytes))
    host::fail(here, "from %p to %p, which are not aligned to %d bytes", from, to, kBytes);
  const host::AsyncCopy copy = {to, from, kBytes, is_inside};
  if (host::options().copies == host::Copies::eager) return perform(copy);
  host::add_copy(copy);
}
inline void commit_async() { host::commit_copies(); }
template <int kGroups>
void wait_async() {
  while (const host::AsyncCopy* copy = host::next_copy(kGroups)) perform(*copy);
}

// ---- products of matrices

template <int kMatrices, bool kTransposed>
void load_rows(uint32_t (&r)[kMatrices], const void* row, const host::Place& at) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4, "ldmatrix loads 1, 2 or 4 matrices");
  host::MatrixRows own = {{}, r};
  if (host::current->lane < 8 * kMatrices) {
    if ((uintptr_t)row % 16) host::fail(at, "a row at %p, which is not aligned to 16 bytes", row);
    memcpy(own.row, row, sizeof own.row);
  }
  host::collective(at, 0xffffffffu, &own, host::give_matrices<kMatrices, kTransposed>);
}
template <int kMatrices>
void load_matrices(uint32_t (&r)[kMatrices], const void* row, PF_PLACE) {
  PF_HERE("load_matrices");
  load_rows<kMatrices, false>(r, row, here);
}
template <int kMatrices>
void load_matrices_transposed(uint32_t (&r)[kMatrices], const void* row, PF_PLACE) {
  PF_HERE("load_matrices_transposed");
  load_rows<kMatrices, true>(r, row, here);
}

template <class T>
PF_UNWATCHED void give_products(void* const* lanes, uint32_t) {
  if constexpr (sizeof(T) == 4)
    host::multiply_fragments<false>(lanes, [](uint32_t bits) { return __uint_as_float(bits & ~0x1fffu); });
  else
    host::multiply_fragments<true>(lanes, [](uint32_t bits) { return to_float(T{(uint16_t)bits}); });
}
template <class T>
void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], PF_PLACE) {
  PF_HERE("multiply_add");
  host::Fragments own = {c, a, b};
  host::collective(here, 0xffffffffu, &own, give_products<T>);
}

// ---- launches

typedef void* Stream;

template <int threads, int blocks = 1>
struct Kernel {
  static constexpr int kThreads = threads, kBlocks = blocks;
};

// "Scale<float>" of a class.
template <class K>
const char* name_of() {
  static const std::string name = [](const std::string& all) {  // "... [with K = Scale<float>]"
    const size_t begin = all.find("K = ") + 4;
    return all.substr(begin, all.find_last_of(']') - begin);
  }(__PRETTY_FUNCTION__);
  return name.c_str();
}

template <class K, class... Args>
Status launch_as(bool is_cooperative, dim3 grid, size_t dynamic_shared, Args... args) {
  const std::tuple<Args...> all(args...);
  return {host::run(
      {grid, K::kThreads, K::kBlocks, dynamic_shared, is_cooperative, name_of<K>()},
      [](const void* all) { std::apply([](const Args&... args) { K()(args...); }, *(const std::tuple<Args...>*)all); },
      &all)};
}
template <class K, class... Args>
Status launch(dim3 grid, size_t dynamic_shared, Stream, Args... args) {
  return launch_as<K>(false, grid, dynamic_shared, args...);
}
template <class K, class... Args>
Status launch_cooperative(dim3 grid, size_t dynamic_shared, Stream, Args... args) {
  return launch_as<K>(true, grid, dynamic_shared, args...);
}
inline Status select_device(int) { return {nullptr}; }
inline int driver_version() { return 0; }
inline int runtime_version() { return 0; }

template <class K, class... Args>
Status resident_blocks(size_t dynamic_shared, int* blocks) {
  *blocks = host::blocks_each(K::kThreads, dynamic_shared) * host::options().processors;
  return {nullptr};
}

}  // namespace pf::cuda
