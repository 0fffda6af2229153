// Sums of terms over all elements, and their gradients, element by element.
#pragma once
#include "../core/parallel.h"
#include "sums.h"
#include "terms.h"

namespace PF_ISA::loss {

namespace {

double sum_of_part(const LossPart& p, int64_t begin, int64_t end) {
  double sum = 0;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> T;
    const S *x = (const S*)p.x, *dd = (const S*)p.dd;
    for_term(p.term, [&](auto term) {
      typedef decltype(term) Term;
      if (dd)
        sum = sum_range<T>(begin, end, [&](int64_t i, auto count) {
          return Term::first(load_part(x + i, count), load_part(dd + i, count));
        });
      else
        sum = sum_range<T>(begin, end, [&](int64_t i, auto count) { return Term::value(load_part(x + i, count)); });
    });
  });
  return sum;
}

void gradient_of_part(const LossPart& p, double dy, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> T;
    const S *x = (const S*)p.x, *dd = (const S*)p.dd;
    S* to = (S*)p.to;
    const Vec<T> g = splat<Vec<T>>((T)(dy * p.scale));
    for_term(p.term, [&](auto term) {
      typedef decltype(term) Term;
      if (dd)
        for_columns_down<T>(begin, end, [&](int64_t i, auto count) {
          store_part(to + i, Term::second(load_part(x + i, count), g * load_part(dd + i, count)), count);
        });
      else
        for_columns_down<T>(begin, end, [&](int64_t i, auto count) {
          store_part(to + i, Term::first(load_part(x + i, count), g), count);
        });
    });
  });
}

}  // namespace

void loss_sums(const LossSums& p, int num_threads) {
  double* sums = (double*)p.workspace;
  const int64_t first = loss_chunks(p.parts[0].n), all = first + loss_chunks(p.parts[1].n);
  parallel_ranges(all, kChunksOfThread, num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; chunk++) {
      const LossPart& part = p.parts[chunk >= first];
      const int64_t at = (chunk >= first ? chunk - first : chunk) * kLossChunk;
      sums[chunk] = sum_of_part(part, at, min_of(part.n, at + kLossChunk));
    }
  });
  double result = 0;
  for (int which = 0; which < kLossParts; which++) {
    double sum = 0;
    for (int64_t chunk = which ? first : 0; chunk < (which ? all : first); chunk++) sum += sums[chunk];
    result += p.parts[which].scale == 0 ? 0 : sum * p.parts[which].scale;
  }
  for_dtype(p.result_dtype, [&](auto storage) {
    typedef decltype(storage) S;
    put((S*)p.result, (Acc<S>)result);
  });
}

void loss_gradients(const LossGradients& p, int num_threads) {
  double dy = 0;
  for_dtype(p.dy_dtype, [&](auto storage) {
    typedef decltype(storage) S;
    dy = (double)get((const S*)p.dy);
  });
  for (const LossPart& part : p.parts)
    if (part.to)
      parallel_ranges(part.n, kChunksOfThread * kLossChunk, num_threads,
                      [&](int64_t begin, int64_t end) { gradient_of_part(part, dy, begin, end); });
}

}  // namespace PF_ISA::loss
