// Storage types. Arithmetic happens in float, or in double for double.
#pragma once
#include <stdint.h>

enum class Dtype : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
constexpr int kDtypes = 4;

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
