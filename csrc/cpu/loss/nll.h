// The negative of the score of each target, and its gradient, of the softmaxes of cross_entropy.h: one of their scores
// is read, and no other.
#pragma once
#include "cross_entropy.h"

namespace PF_ISA::loss {

namespace {

// Places in [outer, inner] whose losses one thread sums, the same for any number of threads.
template <class Body>
PF_INLINE void for_places(const CrossEntropy& p, int threads, Body body) {
  const int64_t places = p.outer * p.inner;
  parallel_ranges(nll_loss_chunks(p.outer, p.inner), 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; chunk++)
      body(chunk, chunk * kPlacesOfChunk, min_of(places, (chunk + 1) * kPlacesOfChunk));
  });
}

}  // namespace

void nll_loss_fwd(const CrossEntropyFwd& f, int num_threads) {
  const CrossEntropy& p = f.of;
  Part* parts = (Part*)f.chunks;
  Part sum = {};
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_places(p, num_threads, [&](int64_t chunk, int64_t begin, int64_t end) {
      Part of_chunk = {};
      for (int64_t place = begin; place < end; place++) {
        const int64_t target = target_of(p, place);
        Part part = {0, 0};
        if (target >= 0) {
          const S* x = (const S*)p.x + place / p.inner * p.x_outer_stride + place % p.inner;
          part.weight = weight_of<S>(p, target);
          part.loss = -part.weight * (double)get(x + target * p.x_step);
        }
        add_part(f, place, part, &of_chunk);
      }
      parts[chunk] = of_chunk;
    });
    for (int64_t i = 0; i < nll_loss_chunks(p.outer, p.inner); i++)
      sum.loss += parts[i].loss, sum.weight += parts[i].weight;
    const bool is_mean = p.reduction == Reduction::mean;
    *(Acc<S>*)f.total = (Acc<S>)(is_mean ? sum.weight : 1);
    if (p.reduction != Reduction::none) put_number(f.loss, 0, is_mean ? sum.loss / sum.weight : sum.loss, p.loss_dtype);
  });
}

// The scores are not read. dx is cleared a chunk of its memory at a time, and then each place writes one number.
void nll_loss_bwd(const CrossEntropyBwd& b, int num_threads) {
  const CrossEntropy& p = b.of;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    S* dx = (S*)b.dx;
    double scale = 0;
    if (p.reduction != Reduction::none) scale = number_of(b.dloss, 0, p.loss_dtype) / (double)*(const Acc<S>*)b.total;
    parallel_ranges(p.outer, max_of(1, kElementwiseGrain / (p.n * p.inner)), num_threads,
                    [&](int64_t begin, int64_t end) {
                      memset(dx + begin * p.n * p.inner, 0, (size_t)((end - begin) * p.n * p.inner) * sizeof(S));
                      for (int64_t place = begin * p.inner; place < end * p.inner; place++) {
                        const int64_t target = target_of(p, place);
                        if (target < 0) continue;
                        double g = scale;
                        if (p.reduction == Reduction::none) g = number_of(b.dloss, place, p.loss_dtype);
                        put(dx + (place / p.inner * p.n + target) * p.inner + place % p.inner,
                            (Acc<S>)(-g * weight_of<S>(p, target)));
                      }
                    });
  });
}

}  // namespace PF_ISA::loss
