// What weights held when they were packed: packed weights that are kept ask, at every call, whether they still hold it.
#pragma once
#include <array>
#include <atomic>
#include <vector>

#include "../common/core.h"
#include "bindings.h"

PF_KERNEL(core, fingerprint, Fingerprint)

typedef std::array<int64_t, 3> Matrix;  // (address, rows, bytes of a row), dense

class Fingerprints {
 public:
  // Before they are packed: what changes from here on is seen.
  Fingerprints(std::vector<Matrix> weights, int num_threads) : weights_(std::move(weights)) {
    for (int64_t i = 0; i < kPhases; i++) phases_[i] = now(i, num_threads);
    whole_ = now(-1, num_threads);
  }
  // Are the weights, which the caller has seen where they lay, those that were packed? Every element is compared, or
  // the share of one phase, another one in each call.
  bool is_current(bool is_whole, int num_threads) const {
    if (is_whole) return now(-1, num_threads) == whole_;
    const int64_t phase = calls_++ % kPhases;
    return now(phase, num_threads) == phases_[phase];
  }

 private:
  // One hash of all weights' values.
  uint64_t now(int64_t phase, int num_threads) const {
    uint64_t all = 0;
    for (const auto& [address, rows, row_bytes] : weights_) {
      uint64_t hash = 0;
      call(core::fingerprint, {at<void>(address), rows, row_bytes, phase, &hash}, num_threads);
      all = (all ^ hash) * 0x9e3779b97f4a7c15ull;
    }
    return all;
  }

  std::vector<Matrix> weights_;
  std::array<uint64_t, kPhases> phases_;
  uint64_t whole_;
  mutable std::atomic<uint32_t> calls_{0};
};
