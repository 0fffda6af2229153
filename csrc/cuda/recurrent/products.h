// The product of each step: weights [rows, K], which stay in registers and shared memory for all steps, with 8
// sequences of what other blocks have published, [8, K] in global memory.
//
// K is cut into pieces of 64 bytes, which the warps take in turn. A lane has 16 bytes of a piece in four rows: two
// instructions' registers in one access, since any order of K will do that is the same on both sides. What a warp reads
// of a sequence is whole sectors.
#pragma once
#include <type_traits>

#include "../core/values.h"

namespace pf::cuda::recurrent {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kTile = 16, kColumns = 8;  // rows of weights and sequences of a product
constexpr int kPieceBytes = 64;
constexpr int kTileBytes = 2 * kWarp * 16;  // of a tile of weights and a piece

struct alignas(16) Words {
  uint32_t of[4];
};

// Arithmetics: bf16, f16 and tf32 go to tensor cores, float to multiply-adds.
template <class A>
using Stored = std::conditional_t<std::is_same_v<A, tf32>, float, A>;
template <class A>
constexpr int kPieceElements = kPieceBytes / (int)sizeof(Stored<A>);

inline int pieces_of(int64_t elements, int64_t size) {
  return (int)((elements * size + kPieceBytes - 1) / kPieceBytes);
}

template <class A>
__device__ __forceinline__ Words rounded(Words words) {
  if constexpr (std::is_same_v<A, tf32>) {
    PF_UNROLL_ALL
    for (int i = 0; i < 4; i++) words.of[i] = from_float<tf32>(__uint_as_float(words.of[i])).bits;
  }
  return words;
}

// Of a lane: rows lane / 4 and lane / 4 + 8 of a tile, columns 2 (lane % 4) and the next, as mma has them.
template <class A, int kTiles>
struct Sums {
  float c[kTiles][4] = {};

  // from: the lane's 16 bytes of the first sequence's piece.
  struct Columns {
    Words words;
    __device__ __forceinline__ void load(const char* from, int64_t pitch) {
      words = rounded<A>(*as_vector<Words>(from + (int)(threadIdx.x % kWarp) / 4 * pitch));
    }
  };
  __device__ __forceinline__ void add(int tile, const uint32_t (&first)[4], const uint32_t (&second)[4],
                                      const Columns& columns) {
    const uint32_t (&w)[4] = columns.words.of;
    multiply_add<A>(c[tile], first, {w[0], w[1]});
    multiply_add<A>(c[tile], second, {w[2], w[3]});
  }
  __device__ __forceinline__ void finish(float (&sums)[kTiles][4]) const {
    PF_UNROLL_ALL
    for (int tile = 0; tile < kTiles; tile++) PF_UNROLL_ALL
    for (int i = 0; i < 4; i++) sums[tile][i] = c[tile][i];
  }
};

// Each lane multiplies its own words with those of all 8 sequences; the four lanes of a row share them out in the end.
template <int kTiles>
struct Sums<float, kTiles> {
  float c[kTiles][2][kColumns] = {};

  struct Columns {
    Words words[kColumns];
    __device__ __forceinline__ void load(const char* from, int64_t pitch) {
      PF_UNROLL_ALL
      for (int n = 0; n < kColumns; n++) words[n] = *as_vector<Words>(from + n * pitch);
    }
  };
  __device__ __forceinline__ void add(int tile, const uint32_t (&first)[4], const uint32_t (&second)[4],
                                      const Columns& columns) {
    PF_UNROLL_ALL
    for (int word = 0; word < 4; word++) {
      const uint32_t* const w = (word < 2 ? first : second) + word % 2 * 2;
      PF_UNROLL_ALL
      for (int half = 0; half < 2; half++) PF_UNROLL_ALL
      for (int n = 0; n < kColumns; n++)
        c[tile][half][n] += __uint_as_float(w[half]) * __uint_as_float(columns.words[n].of[word]);
    }
  }
  __device__ __forceinline__ void finish(float (&sums)[kTiles][4]) const {
    const bool is_upper = threadIdx.x & 2, is_odd = threadIdx.x & 1;
    PF_UNROLL_ALL
    for (int tile = 0; tile < kTiles; tile++) PF_UNROLL_ALL
    for (int half = 0; half < 2; half++) {
      const float (&from)[kColumns] = c[tile][half];
      float four[4];
      PF_UNROLL_ALL
      for (int n = 0; n < 4; n++)
        four[n] = (is_upper ? from[n + 4] : from[n]) + __shfl_xor_sync(kAllLanes, is_upper ? from[n] : from[n + 4], 2);
      PF_UNROLL_ALL
      for (int n = 0; n < 2; n++)
        sums[tile][half * 2 + n] =
            (is_odd ? four[n + 2] : four[n]) + __shfl_xor_sync(kAllLanes, is_odd ? four[n] : four[n + 2], 1);
    }
  }
};

// Pieces of weights in a thread's registers, 8 for a tile of each, as many as ptxas finds room for without spilling: 96
// to 128 registers; less where sums or columns take more.
template <class A, int kTiles>
constexpr int kHeldPieces = std::is_same_v<A, float>  ? (kTiles == 1   ? 8
                                                         : kTiles == 2 ? 4
                                                         : kTiles == 3 ? 2
                                                                       : 1)
                            : std::is_same_v<A, tf32> ? (kTiles == 1   ? 12
                                                         : kTiles == 2 ? 6
                                                         : kTiles == 3 ? 4
                                                                       : 3)
                                                      : (kTiles == 1   ? 16
                                                         : kTiles == 2 ? 6
                                                                       : 4);

// The weights of a block: of each warp the first kHeld pieces in registers, the others in shared memory, where each
// lane reads what it wrote itself.
template <class A, int kTiles, int kHeld>
struct Weights {
  uint32_t held[kHeld][kTiles][2][4];
  int pieces;  // of this warp
  Words* rest;

  static __device__ int lane() { return (int)threadIdx.x % kWarp; }
  static __device__ int warp() { return (int)threadIdx.x / kWarp; }

  // read(row, piece, element of the piece) is a weight; those of rows that are not there are 0.
  template <class Read>
  __device__ __forceinline__ static Words words_of(int row, int piece, Read read) {
    typedef Stored<A> T;
    constexpr int kEach = 16 / sizeof(T);
    Words words;
    PF_UNROLL_ALL
    for (int word = 0; word < 4; word++) {
      const int first = lane() % 4 * kEach + word * kEach / 4;
      if constexpr (sizeof(T) == 4)
        words.of[word] = __float_as_uint(read(row, piece, first));
      else
        words.of[word] = (uint32_t)read(row, piece, first).bits | (uint32_t)read(row, piece, first + 1).bits << 16;
    }
    return rounded<A>(words);
  }
  template <class Read>
  __device__ __forceinline__ static void fragment(uint32_t (&first)[4], uint32_t (&second)[4], int tile, int piece,
                                                  Read read) {
    const int row = tile * kTile + lane() / 4;
    const Words low = words_of(row, piece, read), high = words_of(row + 8, piece, read);
    first[0] = low.of[0], first[1] = high.of[0], first[2] = low.of[1], first[3] = high.of[1];
    second[0] = low.of[2], second[1] = high.of[2], second[2] = low.of[3], second[3] = high.of[3];
  }
  __device__ __forceinline__ Words* rest_of(int i, int tile) const {
    return rest + ((size_t)(i - kHeld) * kTiles + tile) * 2 * kWarp + lane();
  }

  // all: pieces of K. shared: for every warp as many pieces as the first one has beyond kHeld.
  template <class Read>
  __device__ __forceinline__ void take(int all, Words* shared, Read read) {
    pieces = (all - warp() + kWarps - 1) / kWarps;
    if (pieces < 0) pieces = 0;
    const int most = (all + kWarps - 1) / kWarps;
    rest = shared + (size_t)warp() * (most > kHeld ? most - kHeld : 0) * kTiles * 2 * kWarp;
    PF_UNROLL_ALL
    for (int i = 0; i < kHeld; i++) PF_UNROLL_ALL
    for (int tile = 0; tile < kTiles; tile++) {
      PF_UNROLL_ALL
      for (int word = 0; word < 8; word++) held[i][tile][word / 4][word % 4] = 0;
      if (i < pieces) fragment(held[i][tile][0], held[i][tile][1], tile, warp() + i * kWarps, read);
    }
    for (int i = kHeld; i < pieces; i++)
      for (int tile = 0; tile < kTiles; tile++) {
        Words words[2];
        fragment(words[0].of, words[1].of, tile, warp() + i * kWarps, read);
        rest_of(i, tile)[0] = words[0], rest_of(i, tile)[kWarp] = words[1];
      }
  }

  // This warp's part of the product with 8 sequences, `pitch` bytes apart.
  __device__ __forceinline__ void multiply(const char* from, int64_t pitch, float (&sums)[kTiles][4]) const {
    typedef typename Sums<A, kTiles>::Columns Columns;
    from += warp() * kPieceBytes + lane() % 4 * 16;
    Sums<A, kTiles> total;
    constexpr int kAtOnce = sizeof(Columns) > 16 ? 1
                            : kHeld % 4          ? kHeld % 3 ? 1 : 3
                                                 : 4;  // on their way, of what L2 answers
    PF_UNROLL_ALL
    for (int first = 0; first < kHeld; first += kAtOnce) {
      Columns columns[kAtOnce];
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++)
        if (first + i < pieces) columns[i].load(from + (first + i) * kWarps * kPieceBytes, pitch);
      PF_UNROLL_ALL
      for (int i = 0; i < kAtOnce; i++)
        if (first + i < pieces) PF_UNROLL_ALL
      for (int tile = 0; tile < kTiles; tile++)
        total.add(tile, held[first + i][tile][0], held[first + i][tile][1], columns[i]);
    }
    for (int i = kHeld; i < pieces; i++) {
      Columns columns;
      columns.load(from + (int64_t)i * kWarps * kPieceBytes, pitch);
      PF_UNROLL_ALL
      for (int tile = 0; tile < kTiles; tile++) {
        const Words first = rest_of(i, tile)[0], second = rest_of(i, tile)[kWarp];
        total.add(tile, first.of, second.of, columns);
      }
    }
    total.finish(sums);
  }
};

// The warps' parts [warp, row, column] in shared memory: a step of 9 from row to row, so that neither those who write
// columns nor those who read units meet in a bank.
constexpr int kSumsPitch = kColumns + 1;
template <int kTiles>
constexpr int kSumsSize = kWarps * kTiles * kTile * kSumsPitch;

template <int kTiles>
__device__ __forceinline__ void store_sums(float* sums, const float (&own)[kTiles][4]) {
  const int lane = (int)threadIdx.x % kWarp, warp = (int)threadIdx.x / kWarp;
  PF_UNROLL_ALL
  for (int tile = 0; tile < kTiles; tile++) PF_UNROLL_ALL
  for (int i = 0; i < 4; i++) {
    const int row = tile * kTile + lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    sums[(warp * kTiles * kTile + row) * kSumsPitch + column] = own[tile][i];
  }
}
// In the order of the warps, of which so many have a part.
template <int kTiles>
__device__ __forceinline__ float sum_of(const float* sums, int warps, int row, int column) {
  float sum = 0.0f;
  for (int warp = 0; warp < warps; warp++) sum += sums[(warp * kTiles * kTile + row) * kSumsPitch + column];
  return sum;
}

}  // namespace pf::cuda::recurrent
