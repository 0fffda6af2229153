// One table of pointers per instruction set; dispatch.cpp chooses among them once.
#pragma once
#include "../common/activation.h"
#include "../common/attention.h"
#include "../common/dropout.h"
#include "../common/fingerprint.h"
#include "../common/layer_norm.h"
#include "../common/linear.h"
#include "../common/peak.h"
#include "../common/rnn.h"

struct KernelTable {
  const char* isa;
  int vector_bytes;
#define KERNEL(name, Params) void (*name)(const Params&, int num_threads);
#include "kernels.inc"
#undef KERNEL
};
