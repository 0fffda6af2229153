// Compiled for the oldest processor we run on: everything here runs before we know which one it is.
#include "dispatch.h"

#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#include <atomic>

// setup.py defines PF_HAVE_<ISA> for each that is in this build.
#define DECLARE(isa)              \
  namespace isa {                 \
  extern const KernelTable table; \
  }
#ifdef PF_HAVE_GENERIC
DECLARE(generic)
#define PF_TABLE_generic &generic::table
#else
#define PF_TABLE_generic nullptr
#endif
#ifdef PF_HAVE_AVX2
DECLARE(avx2)
#define PF_TABLE_avx2 &avx2::table
#else
#define PF_TABLE_avx2 nullptr
#endif
#ifdef PF_HAVE_AVX512
DECLARE(avx512)
#define PF_TABLE_avx512 &avx512::table
#else
#define PF_TABLE_avx512 nullptr
#endif
#ifdef PF_HAVE_AVX512_BF16
DECLARE(avx512_bf16)
#define PF_TABLE_avx512_bf16 &avx512_bf16::table
#else
#define PF_TABLE_avx512_bf16 nullptr
#endif

namespace {

std::atomic<const KernelTable*> selected{nullptr};
std::atomic<bool> is_forked_child{false};

const int atfork = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

}  // namespace

Processor processor() {
  Processor found;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  found.is_intel = __builtin_cpu_is("intel");
  found.is_amd = __builtin_cpu_is("amd");
  if (__get_cpuid(1, &a, &b, &c, &d)) {
    const int family = a >> 8 & 15, model = a >> 4 & 15;
    found.family = family == 15 ? family + (a >> 20 & 255) : family;
    found.model = family == 15 || family == 6 ? model + (a >> 16 & 15) * 16 : model;
  }
#endif
  return found;
}

const Isa* isas() {
#if defined(__x86_64__)
  static const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  static const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512vl");
  static const Isa all[] = {{"generic", PF_TABLE_generic, (bool)__builtin_cpu_supports("sse4.2")},
                            {"avx2", PF_TABLE_avx2, v3},
                            {"avx512", PF_TABLE_avx512, v4},
                            {"avx512_bf16", PF_TABLE_avx512_bf16, v4 && __builtin_cpu_supports("avx512bf16")},
                            {nullptr, nullptr, false}};
#else
  static const Isa all[] = {{"generic", PF_TABLE_generic, true}, {nullptr, nullptr, false}};
#endif
  return all;
}

const KernelTable* best_table(bool is_intel) {
  const KernelTable *table = nullptr, *avx512 = nullptr;
  for (const Isa* isa = isas(); isa->name; isa++) {
    if (!isa->table || !isa->supported) continue;
    table = isa->table;
    if (!strcmp(isa->name, "avx512")) avx512 = table;
  }
  return is_intel && avx512 ? avx512 : table;
}

bool select_isa(const char* name) {
  for (const Isa* isa = isas(); isa->name; isa++)
    if (!strcmp(isa->name, name) && isa->table && isa->supported) {
      selected = isa->table;
      return true;
    }
  return false;
}

const KernelTable& kernels() {
  const KernelTable* table = selected;
  if (!table) selected = table = best_table(processor().is_intel);
  return *table;
}

int allowed_threads(int wanted) { return is_forked_child || wanted < 1 ? 1 : wanted; }
