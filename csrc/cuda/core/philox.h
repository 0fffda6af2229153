// Philox4x32-10: four words of a key and a counter. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include "../facade.h"

namespace pf::cuda {

__device__ __forceinline__ void philox4x32(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                           uint32_t (&words)[4]) {
  uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
  PF_UNROLL_ALL
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = (uint64_t)c0 * 0xD2511F53u, product1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0, c1 = (uint32_t)product1;
    c2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1, c3 = (uint32_t)product0;
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

}  // namespace pf::cuda
