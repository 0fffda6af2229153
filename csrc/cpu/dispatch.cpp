// Compiled for the oldest processor we run on: everything here runs before we know which one it is.
#include "dispatch.h"

#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#include <atomic>

#define PF_HAS(ISA) PF_IF_##ISA(true, false)

namespace {

std::atomic<int> selected{-1};
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
  static const Isa all[] = {{"generic", PF_HAS(GENERIC), (bool)__builtin_cpu_supports("sse4.2")},
                            {"avx2", PF_HAS(AVX2), v3},
                            {"avx512", PF_HAS(AVX512), v4},
                            {"avx512_bf16", PF_HAS(AVX512_BF16), v4 && __builtin_cpu_supports("avx512bf16")},
                            {nullptr, false, false}};
#else
  static const Isa all[] = {{"generic", PF_HAS(GENERIC), true}, {nullptr, false, false}};
#endif
  return all;
}

int best_isa(bool is_intel) {
  int best = -1, avx512 = -1;
  for (int i = 0; isas()[i].name; i++) {
    if (!isas()[i].is_built || !isas()[i].is_supported) continue;
    best = i;
    if (!strcmp(isas()[i].name, "avx512")) avx512 = i;
  }
  return is_intel && avx512 >= 0 ? avx512 : best;
}

bool select_isa(const char* name) {
  for (int i = 0; isas()[i].name; i++)
    if (!strcmp(isas()[i].name, name) && isas()[i].is_built && isas()[i].is_supported) {
      selected = i;
      return true;
    }
  return false;
}

int selected_isa() {
  int isa = selected;
  if (isa < 0) selected = isa = best_isa(processor().is_intel);
  return isa;
}

int allowed_threads(int wanted) { return is_forked_child || wanted < 1 ? 1 : wanted; }
