// Which instruction set the calls of this process take.
#pragma once
#include "kernel_table.h"

struct Isa {
  const char* name;
  const KernelTable* table;  // null: not in this build
  bool supported;            // by this processor
};

struct Processor {
  bool is_intel = false, is_amd = false;
  int family = 0, model = 0;  // as the maker numbers them, extended parts added; 0 where there is no CPUID
};
Processor processor();

// Worst first; ends with a null name.
const Isa* isas();
// The one in use: PYFLASH_CPU_ISA, or else the best that is built and supported.
const KernelTable& kernels();
// The best that is built and supported, where none is asked for. On Intel avx512 is better than avx512_bf16, whose dot
// product runs at half the rate of multiply-add: 85 of 170 GF/s a core.
const KernelTable* best_table(bool is_intel);
// False when `name` is unknown, not built or not supported; nothing changes then.
bool select_isa(const char* name);
// Threads a call may use: `wanted`, or 1 in a forked child, where OpenMP's pool did not survive the fork.
int allowed_threads(int wanted);
