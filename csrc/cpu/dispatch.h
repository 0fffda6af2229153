// Which instruction set the calls of this process take, and each kernel in all of them.
#pragma once
#include <stdint.h>

// setup.py defines PF_HAVE_<ISA> for each instruction set that is in this build. PF_IF_<ISA>(yes, no) is one of the
// two.
#define PF_YES(yes, no) yes
#define PF_NO(yes, no) no
#ifdef PF_HAVE_GENERIC
#define PF_IF_GENERIC PF_YES
#else
#define PF_IF_GENERIC PF_NO
#endif
#ifdef PF_HAVE_AVX2
#define PF_IF_AVX2 PF_YES
#else
#define PF_IF_AVX2 PF_NO
#endif
#ifdef PF_HAVE_AVX512
#define PF_IF_AVX512 PF_YES
#else
#define PF_IF_AVX512 PF_NO
#endif
#ifdef PF_HAVE_AVX512_BF16
#define PF_IF_AVX512_BF16 PF_YES
#else
#define PF_IF_AVX512_BF16 PF_NO
#endif

constexpr int kIsas = 4;

// One kernel, compiled for each instruction set, in the order of isas(); null: not in this build.
template <class Params>
struct Kernel {
  void (*of[kIsas])(const Params&, int num_threads);
};

// The kernel family::name of csrc/cpu/<family>/kernels.cpp: `void name(const Params&, int num_threads)`. The linker
// says when it is not there, or takes other parameters.
#define PF_KERNEL(family, name, Params)                                                                      \
  namespace generic::family {                                                                                \
  void name(const Params&, int num_threads);                                                                 \
  }                                                                                                          \
  namespace avx2::family {                                                                                   \
  void name(const Params&, int num_threads);                                                                 \
  }                                                                                                          \
  namespace avx512::family {                                                                                 \
  void name(const Params&, int num_threads);                                                                 \
  }                                                                                                          \
  namespace avx512_bf16::family {                                                                            \
  void name(const Params&, int num_threads);                                                                 \
  }                                                                                                          \
  namespace family {                                                                                         \
  constexpr Kernel<Params> name = {                                                                          \
      {PF_IF_GENERIC(generic::family::name, nullptr), PF_IF_AVX2(avx2::family::name, nullptr),               \
       PF_IF_AVX512(avx512::family::name, nullptr), PF_IF_AVX512_BF16(avx512_bf16::family::name, nullptr)}}; \
  }

struct Isa {
  const char* name;
  bool is_built, is_supported;  // in this build; by this processor
};

struct Processor {
  bool is_intel = false, is_amd = false;
  int family = 0, model = 0;  // as the maker numbers them, extended parts added; 0 where there is no CPUID
};
Processor processor();

// Worst first; ends with a null name.
const Isa* isas();
// The number of the one in use: PYFLASH_CPU_ISA, or else the best that is built and supported.
int selected_isa();
// The best that is built and supported, where none is asked for. On Intel avx512 is better than avx512_bf16, whose dot
// product runs at half the rate of multiply-add: 85 of 170 GF/s a core.
int best_isa(bool is_intel);
// False when `name` is unknown, not built or not supported; nothing changes then.
bool select_isa(const char* name);
// Threads a call may use: `wanted`, or 1 in a forked child, where OpenMP's pool did not survive the fork.
int allowed_threads(int wanted);
