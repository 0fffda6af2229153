// Softmax, its logarithm and softmin, forward and backward: over rows (rows.h) or columns (columns.h).
#pragma once
#include "columns.h"
#include "rows.h"

namespace PF_ISA::softmax {

void softmax_fwd(const SoftmaxFwd& p, int num_threads) {
  if (p.outer * p.n * p.inner == 0) return;
  for_pair(p.from, p.to, [&](auto from, auto to) {
    typedef decltype(from) From;
    typedef decltype(to) To;
    const bool is_log = p.kind == SoftmaxKind::log_softmax;
    if (p.inner == 1)
      is_log ? softmax_fwd_rows<From, To, true>(p, num_threads) : softmax_fwd_rows<From, To, false>(p, num_threads);
    else
      is_log ? softmax_fwd_columns<From, To, true>(p, num_threads)
             : softmax_fwd_columns<From, To, false>(p, num_threads);
  });
}

void softmax_bwd(const SoftmaxBwd& p, int num_threads) {
  if (p.outer * p.n * p.inner == 0) return;
  for_pair(p.to, p.from, [&](auto to, auto from) {
    typedef decltype(from) From;
    typedef decltype(to) To;
    const bool is_log = p.kind == SoftmaxKind::log_softmax;
    if (p.inner == 1)
      is_log ? softmax_bwd_rows<From, To, true>(p, num_threads) : softmax_bwd_rows<From, To, false>(p, num_threads);
    else
      is_log ? softmax_bwd_columns<From, To, true>(p, num_threads)
             : softmax_bwd_columns<From, To, false>(p, num_threads);
  });
}

}  // namespace PF_ISA::softmax
