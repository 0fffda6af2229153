// Losses of an input and a target: a block of elements at a time, whose factors wait in the first cache.
#pragma once
#include "../../common/elementwise_loss.h"
#include "../core/parallel.h"
#include "rows.h"
#include "sums.h"

namespace PF_ISA::loss {

namespace {

constexpr int64_t kBlock = 1024;

// The factors of elements [at, at + n), of any type: those of one period as they lie, the rest copies of it.
template <class T>
void fill(const Factors& of, int64_t at, int64_t n, T* to) {
  int64_t filled = 0;
  for_dtype(of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    if constexpr (__is_same(Acc<S>, T)) {
      const S* values = (const S*)of.values;
      const int64_t period = min_of(n, of.count * of.inner);
      int64_t place = at / of.inner % of.count, run = of.inner - at % of.inner;
      while (filled < period) {
        if (of.inner == 1) {
          run = min_of(period - filled, of.count - place);
          for_columns_down<T>(0, run, [&](int64_t j, auto count) {
            store_part(to + filled + j, load_part(values + place + j, count), count);
          });
          place = 0;
        } else {
          run = min_of(period - filled, run);
          const T value = get(values + place);
          for (int64_t j = 0; j < run; j++) to[filled + j] = value;
          if (++place == of.count) place = 0;
        }
        filled += run;
        run = of.inner;
      }
    }
  });
  while (filled < n) {
    const int64_t copied = min_of(filled, n - filled);
    memcpy(to + filled, to, (size_t)copied * sizeof(T));
    filled += copied;
  }
}

// The numbers of a block are stored where each is wanted, or summed.
template <class S, class T>
double finish(const ElementwiseLossFwd& f, int64_t at, int64_t n, const T* losses) {
  if (f.of.is_reduced) return sum_range<T>(0, n, [&](int64_t j, auto count) { return load_part(losses + j, count); });
  if (sizeof(S) == 2 && f.of.loss_dtype == Dtype::f32)
    for_columns_down<T>(
        0, n, [&](int64_t j, auto count) { store_part((T*)f.loss + at + j, load_part(losses + j, count), count); });
  else
    for_columns_down<T>(
        0, n, [&](int64_t j, auto count) { store_part((S*)f.loss + at + j, load_part(losses + j, count), count); });
  return 0;
}

template <class S, class Row>
Part losses_of_chunk(const ElementwiseLossFwd& f, const Row row, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const ElementwiseLoss& p = f.of;
  T weights[kBlock] __attribute__((aligned(64))), positives[kBlock] __attribute__((aligned(64)));
  T losses[kBlock] __attribute__((aligned(64)));
  Part sum = {};
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = min_of(kBlock, end - at);
    const S *x = (const S*)p.x + at, *t = (const S*)p.target + at;
    if (Row::kHasPosWeight) fill(p.pos_weight, at, n, positives);
    const auto loss_of = [&](int64_t j, auto count) {
      V positive = V{};
      if constexpr (Row::kHasPosWeight) positive = load_part(positives + j, count);
      return row.forward(load_part(x + j, count), load_part(t + j, count), positive);
    };
    if (p.is_reduced && !p.weight.values) {
      sum.loss += sum_range<T>(0, n, loss_of);
      continue;
    }
    for_columns_down<T>(0, n, [&](int64_t j, auto count) { store_part(losses + j, loss_of(j, count), count); });
    if (p.weight.values) {
      fill(p.weight, at, n, weights);
      for (int64_t j = 0; j < n; j++) losses[j] *= weights[j];
      if (f.is_weighted)
        sum.weight += sum_range<T>(0, n, [&](int64_t j, auto count) { return load_part(weights + j, count); });
    }
    sum.loss += finish<S>(f, at, n, losses);
  }
  return sum;
}

// scale: of a sum, what arrives at each of its losses.
template <class S, class Row>
void gradients_of_chunk(const ElementwiseLossBwd& b, const Row row, double scale, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const ElementwiseLoss& p = b.of;
  T arrives[kBlock] __attribute__((aligned(64))), positives[kBlock] __attribute__((aligned(64)));
  for (int64_t j = 0; j < min_of(kBlock, end - begin); j++) arrives[j] = (T)scale;
  for (int64_t at = begin; at < end; at += kBlock) {
    const int64_t n = min_of(kBlock, end - at);
    const S *x = (const S*)p.x + at, *t = (const S*)p.target + at;
    if (Row::kHasPosWeight) fill(p.pos_weight, at, n, positives);
    if (p.weight.values) fill(p.weight, at, n, arrives);
    if (p.weight.values && p.is_reduced)
      for (int64_t j = 0; j < n; j++) arrives[j] *= (T)scale;
    if (!p.is_reduced) {
      const Factors dloss = {b.dloss, p.n, 1, p.loss_dtype};
      if (p.weight.values) {
        T own[kBlock] __attribute__((aligned(64)));
        fill(dloss, at, n, own);
        for (int64_t j = 0; j < n; j++) arrives[j] *= own[j];
      } else {
        fill(dloss, at, n, arrives);
      }
    }
    const auto write = [&](void* to, auto gradient) {
      for_columns_down<T>(0, n, [&](int64_t j, auto count) {
        V positive = V{};
        if constexpr (Row::kHasPosWeight) positive = load_part(positives + j, count);
        const V g = load_part(arrives + j, count);
        store_part((S*)to + at + j, gradient(g, load_part(x + j, count), load_part(t + j, count), positive), count);
      });
    };
    if (b.dx) write(b.dx, [&](V g, V x, V t, V positive) { return row.by_input(g, x, t, positive); });
    if constexpr (Row::kHasByTarget)
      if (b.dtarget) write(b.dtarget, [&](V g, V x, V t, V positive) { return row.by_target(g, x, t, positive); });
  }
}

template <class Body>
PF_INLINE void for_loss_chunks(int64_t n, int threads, Body body) {
  parallel_ranges(elementwise_loss_chunks(n), kChunksOfThread, threads, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; chunk++)
      body(chunk, chunk * kElementwiseLossChunk, min_of(n, (chunk + 1) * kElementwiseLossChunk));
  });
}

}  // namespace

void elementwise_loss_fwd(const ElementwiseLossFwd& f, int num_threads) {
  const ElementwiseLoss& p = f.of;
  Part* parts = (Part*)f.chunks;
  for_dtype(p.dtype, [&](auto storage) {
    for_loss(p.row, p.parameter, [&](auto row) {
      for_loss_chunks(p.n, num_threads, [&](int64_t chunk, int64_t begin, int64_t end) {
        parts[chunk] = losses_of_chunk<decltype(storage)>(f, row, begin, end);
      });
    });
  });
  Part sum = {};
  for (int64_t i = 0; i < elementwise_loss_chunks(p.n); i++) sum.loss += parts[i].loss, sum.weight += parts[i].weight;
  const double total = f.is_weighted ? sum.weight : f.divisor;
  *(double*)f.total = total;
  if (p.is_reduced) put_number(f.loss, 0, sum.loss / total, p.loss_dtype);
}

void elementwise_loss_bwd(const ElementwiseLossBwd& b, int num_threads) {
  const ElementwiseLoss& p = b.of;
  const double scale = p.is_reduced ? number_of(b.dloss, 0, p.loss_dtype) / *(const double*)b.total : 0;
  for_dtype(p.dtype, [&](auto storage) {
    for_loss(p.row, p.parameter, [&](auto row) {
      for_loss_chunks(p.n, num_threads, [&](int64_t, int64_t begin, int64_t end) {
        gradients_of_chunk<decltype(storage)>(b, row, scale, begin, end);
      });
    });
  });
}

}  // namespace PF_ISA::loss
