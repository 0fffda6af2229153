// ldmatrix and mma on the CPU, by the layouts of the PTX manual: sections "Matrix fragments for mma.m16n8k16 with
// floating-point type", "... mma.m16n8k8" and "Warp-level matrix load instruction: ldmatrix". They are our reading of
// it.
#pragma once
#include "runtime.h"

// What reads of all lanes where only the last one runs: no race, though nothing orders it.
#define PF_UNWATCHED __attribute__((no_sanitize("thread")))

namespace pf::cuda::host {

// What a lane brings to ldmatrix: the row it addresses, as it lies there, and room for its registers.
struct MatrixRows {
  uint16_t row[8];
  uint32_t* registers;
};

template <int kMatrices, bool kTransposed>
PF_UNWATCHED void give_matrices(void* const* lanes, uint32_t) {
  for (int lane = 0; lane < 32; lane++)
    for (int m = 0; m < kMatrices; m++) {
      uint32_t pair = 0;
      for (int i = 0; i < 2; i++) {
        const int along = lane % 4 * 2 + i, across = lane / 4;
        const int row = kTransposed ? along : across, column = kTransposed ? across : along;
        pair |= (uint32_t)((const MatrixRows*)lanes[m * 8 + row])->row[column] << 16 * i;
      }
      ((const MatrixRows*)lanes[lane])->registers[m] = pair;
    }
}

// What a lane brings to mma.
struct Fragments {
  float* sums;
  const uint32_t *a, *b;
};

// Where registers lie in a[16, k] and b[k, 8]. Of 16-bit elements (k 16) a register has two, of tf32 (k 8) one.
struct Element {
  int row, column;
};
template <bool kIsPair>
Element element_of_a(int lane, int r, int i) {
  return {lane / 4 + r % 2 * 8, kIsPair ? lane % 4 * 2 + i + r / 2 * 8 : lane % 4 + r / 2 * 4};
}
template <bool kIsPair>
Element element_of_b(int lane, int r, int i) {
  return {kIsPair ? lane % 4 * 2 + i + r * 8 : lane % 4 + r * 4, lane / 4};
}
inline Element element_of_sums(int lane, int r) { return {lane / 4 + r / 2 * 8, lane % 4 * 2 + r % 2}; }

// value(bits of an element) -> float.
template <bool kIsPair, class Value>
PF_UNWATCHED void multiply_fragments(void* const* lanes, Value value) {
  constexpr int k = kIsPair ? 16 : 8, elements = kIsPair ? 2 : 1;
  float a[16][k], b[k][8];
  auto part = [](uint32_t bits, int i) { return kIsPair ? bits >> 16 * i & 0xffff : bits; };
  for (int lane = 0; lane < 32; lane++) {
    const Fragments& f = *(const Fragments*)lanes[lane];
    for (int i = 0; i < elements; i++) {
      for (int r = 0; r < 4; r++) {
        const Element at = element_of_a<kIsPair>(lane, r, i);
        a[at.row][at.column] = value(part(f.a[r], i));
      }
      for (int r = 0; r < 2; r++) {
        const Element at = element_of_b<kIsPair>(lane, r, i);
        b[at.row][at.column] = value(part(f.b[r], i));
      }
    }
  }
  for (int lane = 0; lane < 32; lane++)
    for (int r = 0; r < 4; r++) {
      const Element at = element_of_sums(lane, r);
      double sum = 0;
      for (int i = 0; i < k; i++) sum += (double)a[at.row][i] * (double)b[i][at.column];
      float& into = ((const Fragments*)lanes[lane])->sums[r];
      into = (float)((double)into + sum);
    }
}

}  // namespace pf::cuda::host
