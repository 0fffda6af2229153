// fingerprint: one line (64 bytes) in kPhases of every row and every column, or all, at the rate of memory.
#pragma once
#include "../../common/core.h"
#include "parallel.h"

namespace PF_ISA::core {

namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kSmallBytes = 64 << 10;  // all of it is read in the time of a sample
constexpr int64_t kHashRows = 64;          // that a thread reads in one go
constexpr int64_t kHashAhead = 32;         // rows: prefetchers do not follow one line of each
constexpr int kHashStreams = 4;            // rows side by side hide the latency of the multiplication
constexpr int64_t kHashBytes = 128 << 10;  // fewer are not worth another thread
typedef uint32_t Line __attribute__((vector_size(kLineBytes)));

PF_INLINE uint64_t mix(uint64_t h) {  // the finalizer of SplitMix64
  h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9ull;
  h = (h ^ (h >> 27)) * 0x94d049bb133111ebull;
  return h ^ (h >> 31);
}

// A bijection of what is read and one of the hash, so a change of one element is always seen. The multiplication makes
// the place count; the shift brings down the sign bits, which would pass through it and cancel in pairs.
PF_INLINE void absorb(Line& hash, const char* from, int64_t bytes) {
  Line x = {};
  memcpy(&x, from, bytes);
  hash = (hash ^ x) * 0x9e3779b1u;
  hash ^= hash >> 15;
}

// The hash of rows [begin, end): in each row every step-th line, and what comes after the last full line.
uint64_t hash_rows(const Fingerprint& p, int64_t begin, int64_t end, int log_step) {
  const int64_t step = 1ll << log_step;
  const int64_t lines = p.row_bytes / kLineBytes, rest = p.row_bytes % kLineBytes;
  auto first_line = [&](int64_t r) {
    // Another in the next row, and, lest every step-th row be treated alike, after `step` rows.
    return (const char*)p.data + r * p.row_bytes + ((p.phase + r + (r >> log_step)) & (step - 1)) * kLineBytes;
  };
  Line streams[kHashStreams] = {};
  for (int64_t row = begin; row < end; row += kHashStreams) {
    const int count = (int)min_of(kHashStreams, end - row);
    const char* at[kHashStreams];
    int64_t line = 0;
    PF_UNROLL
    for (int j = 0; j < kHashStreams; j++) {
      at[j] = first_line(min_of(row + j, end - 1));
      if (step > 1) __builtin_prefetch(first_line(min_of(row + j + kHashAhead, p.rows - 1)));
    }
    if (count == kHashStreams) {
      for (; line + step <= lines; line += step) {
        PF_UNROLL
        for (int j = 0; j < kHashStreams; j++) absorb(streams[j], at[j] + line * kLineBytes, kLineBytes);
      }
    }
    PF_UNROLL
    for (int j = 0; j < kHashStreams; j++) {
      if (j >= count) break;
      const char *row_at = (const char*)p.data + (row + j) * p.row_bytes, *rest_at = row_at + lines * kLineBytes;
      for (const char* x = at[j] + line * kLineBytes; x < rest_at; x += step * kLineBytes)
        absorb(streams[j], x, kLineBytes);
      if (rest) absorb(streams[j], rest_at, rest);
    }
  }
  for (int j = 1; j < kHashStreams; j++) absorb(streams[0], (const char*)&streams[j], kLineBytes);
  uint64_t words[kLineBytes / 8], sum = 0;
  memcpy(words, &streams[0], sizeof(words));
  for (int w = 0; w < kLineBytes / 8; w++) sum += mix(words[w] + mix(begin * kLineBytes + w + 1));
  return sum;
}

}  // namespace

void fingerprint(const Fingerprint& p, int num_threads) {
  int log_step = 0;  // no row and no column is left out
  const bool is_whole = p.phase < 0 || p.rows * p.row_bytes <= kSmallBytes;
  while (!is_whole && 2 << log_step <= min_of(kPhases, min_of(p.rows, p.row_bytes / kLineBytes))) log_step++;
  const int64_t block_bytes = (kHashRows * p.row_bytes >> log_step) + 1;
  uint64_t hash = 0;
  // Sums of blocks, in any order: the hash does not depend on the number of threads.
  parallel_ranges(ceil_div(p.rows, kHashRows), ceil_div(kHashBytes, block_bytes), num_threads,
                  [&](int64_t begin, int64_t end) {
                    uint64_t sum = 0;
                    for (int64_t block = begin; block < end; block++)
                      sum += hash_rows(p, block * kHashRows, min_of(p.rows, (block + 1) * kHashRows), log_step);
                    __atomic_fetch_add(&hash, sum, __ATOMIC_RELAXED);
                  });
  *p.hash = hash;
}

}  // namespace PF_ISA::core
