// Work on threads, in torch's own OpenMP pool. `threads` is torch.get_num_threads() as Python saw it (OpenMP's own
// count is per thread and stale in a new one), 1 in a forked child. No region is opened for one thread.
#pragma once
#include <omp.h>
#include "../simd/vec.h"

namespace PF_ISA {

// Below this an element-wise loop is quicker on one thread than the region is opened.
constexpr int64_t kElementwiseGrain = 16384;
constexpr int64_t kThreadFlops = 1 << 18;  // of a product, per thread, or a region costs more than it gains

// body(begin, end) over contiguous parts of [0, n), cut at multiples of `grain`, at most one a thread.
template <class Body>
PF_INLINE void parallel_ranges(int64_t n, int64_t grain, int threads, Body body) {
  int64_t parts = min_of(ceil_div(n, grain), threads);
  if (parts <= 1) {
    if (n > 0) body((int64_t)0, n);
    return;
  }
  int64_t step = round_up(ceil_div(n, parts), grain);
#pragma omp parallel for num_threads((int)parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; part++) {
    int64_t begin = part * step, end = min_of(n, begin + step);
    if (begin < end) body(begin, end);
  }
}

// body(i, thread) for each i in [0, n), handed out one by one in order: put the longest first.
template <class Body>
PF_INLINE void parallel_tasks(int64_t n, int threads, Body body) {
  if (n <= 1 || threads <= 1) {
    for (int64_t i = 0; i < n; i++) body(i, 0);
    return;
  }
#pragma omp parallel for num_threads((int)min_of(n, threads)) schedule(dynamic, 1)
  for (int64_t i = 0; i < n; i++) body(i, omp_get_thread_num());
}

}  // namespace PF_ISA
