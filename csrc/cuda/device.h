// The facade under nvcc: CUDA's names are CUDA's, and each instruction of PTX that kernels use has one function.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "status.h"

#define PF_PRAGMA(text) _Pragma(#text)
#define PF_UNROLL_ALL _Pragma("unroll")
#define PF_APART static __device__ __noinline__  // a function that is called
#define PF_UNROLL_BY(times) PF_PRAGMA(unroll times)
#define PF_SHARED(T, name, count) __shared__ T name[count]
#define PF_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char pf_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(pf_dynamic_shared)

namespace pf::cuda {

// ---- numbers

struct tf32 {
  uint32_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ __forceinline__ tf32 from_float<tf32>(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return {bits};
}

// Two of them in a register, the first in its lower half.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high);
template <>
__device__ __forceinline__ uint32_t pair_of<bf16>(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
template <>
__device__ __forceinline__ uint32_t pair_of<f16>(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// 2^x within 2 ulp, where exp2f is slower; subnormal results are zeros.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- several elements at once: V is a struct of them, and its alignment what the address must have

template <class V>
__device__ __forceinline__ const V* as_vector(const void* at) {
  return static_cast<const V*>(at);
}
template <class V>
__device__ __forceinline__ V* as_vector(void* at) {
  return static_cast<V*>(at);
}

// ---- memory between blocks

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}
__device__ __forceinline__ void add_release(uint32_t* flag, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// ---- copies from global to shared memory

__device__ __forceinline__ uint32_t shared_address(const void* at) { return (uint32_t)__cvta_generic_to_shared(at); }

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool is_inside = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const int bytes = is_inside ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes),
                 "n"(kBytes)
                 : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// ---- products of matrices

// Registers of the 8x8 matrices of 16-bit elements whose rows the lanes 8 i to 8 i + 7 address: of lane l the elements
// (l / 4, l % 4 * 2) and the next.
template <int kMatrices>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[kMatrices], const void* row) {
  const uint32_t at = shared_address(row);
  if constexpr (kMatrices == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else if constexpr (kMatrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
}
// The elements (l % 4 * 2, l / 4) and the one below.
template <int kMatrices>
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[kMatrices], const void* row) {
  const uint32_t at = shared_address(row);
  if constexpr (kMatrices == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
  else if constexpr (kMatrices == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(at) : "memory");
}

// sums[16, 8] += a[16, k] b[k, 8]; k is 16, of tf32 8. The layouts are host/products.h's.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define PF_MULTIPLY_ADD(T, instruction)                                                                            \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_add<T>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }
PF_MULTIPLY_ADD(bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
PF_MULTIPLY_ADD(f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
PF_MULTIPLY_ADD(tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef PF_MULTIPLY_ADD

// ---- launches

typedef cudaStream_t Stream;

// Threads of a block, and how many blocks an SM must be able to hold at once: what the compiler may give each register
// for.
template <int threads, int blocks = 1>
struct Kernel {
  static constexpr int kThreads = threads, kBlocks = blocks;
};

template <class K, class... Args>
__global__ void __launch_bounds__(K::kThreads, K::kBlocks) run(Args... args) {
  K()(args...);
}

inline Status status_of(cudaError_t code) { return {code == cudaSuccess ? nullptr : cudaGetErrorString(code)}; }

// A block has 48 KB unless more is asked for: what a kernel declares, which is a few KB, and what its launch adds.
template <class K, class... Args>
cudaError_t allow_shared(size_t dynamic_shared) {
  constexpr size_t kNeverMore = 32 << 10;
  if (dynamic_shared <= kNeverMore) return cudaSuccess;
  return cudaFuncSetAttribute(run<K, Args...>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)dynamic_shared);
}

template <class K, class... Args>
Status launch_as(bool is_cooperative, dim3 grid, size_t dynamic_shared, Stream stream, Args... args) {
  const cudaError_t code = allow_shared<K, Args...>(dynamic_shared);
  if (code != cudaSuccess) return status_of(code);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = is_cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = dim3(K::kThreads);
  config.dynamicSmemBytes = dynamic_shared, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  return status_of(cudaLaunchKernelEx(&config, run<K, Args...>, args...));
}
template <class K, class... Args>
Status launch(dim3 grid, size_t dynamic_shared, Stream stream, Args... args) {
  return launch_as<K>(false, grid, dynamic_shared, stream, args...);
}
template <class K, class... Args>
Status launch_cooperative(dim3 grid, size_t dynamic_shared, Stream stream, Args... args) {
  return launch_as<K>(true, grid, dynamic_shared, stream, args...);
}

// Launches of this thread go to this device from here on. The runtime is this library's own, and knows of no other's
// choice.
inline Status select_device(int device) { return status_of(cudaSetDevice(device)); }
// 13000 is CUDA 13.0: what the driver takes, 0 where there is none, and what this is built with. Starts no device.
inline int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
inline int runtime_version() { return CUDART_VERSION; }

// How many blocks of a kernel are resident at once, all over the device; a cooperative launch has no more.
template <class K, class... Args>
Status resident_blocks(size_t dynamic_shared, int* blocks) {
  int device = 0, processors = 0, of_each = 0;
  cudaError_t code = cudaGetDevice(&device);
  if (code == cudaSuccess) code = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (code == cudaSuccess) code = allow_shared<K, Args...>(dynamic_shared);
  if (code == cudaSuccess)
    code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_each, run<K, Args...>, K::kThreads, dynamic_shared);
  *blocks = processors * of_each;
  return status_of(code);
}

}  // namespace pf::cuda
