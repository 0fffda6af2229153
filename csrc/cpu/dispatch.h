// Which instruction set the calls of this process take.
#pragma once
#include "kernel_table.h"

struct Isa {
  const char* name;
  const KernelTable* table;  // null: not in this build
  bool supported;            // by this processor
};

// Worst first; ends with a null name.
const Isa* isas();
// The one in use: PYFLASH_CPU_ISA, or else the best that is built and supported.
const KernelTable& kernels();
// False when `name` is unknown, not built or not supported; nothing changes then.
bool select_isa(const char* name);
// Threads a call may use: `wanted`, or 1 in a forked child, where OpenMP's pool did not survive the fork.
int allowed_threads(int wanted);
