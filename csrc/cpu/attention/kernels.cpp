// Attention: tile.h has the products, pack.h their operands, scores.h the masks; then one file for each pass.
#include "backward.h"
#include "decode.h"
#include "dmask.h"
#include "forward.h"
#include "weights.h"

namespace PF_ISA::attention {

namespace {

template <class S>
void bwd_typed(const AttentionBwd& call, int num_threads) {
  typedef Acc<S> A;
  const Attention& p = call.of;
  Carver carver = {(char*)call.workspace, 0};
  const BwdWorkspace<Operand<S>> shared(carver, p, num_threads);
  const int64_t query_blocks = ceil_div(p.L, kQueries<A>), key_blocks = ceil_div(p.S, kBwdKeys), units = p.B * p.Hkv;
  parallel_tasks(p.B * p.H * query_blocks, num_threads,
                 [&](int64_t task, int) { start_bwd<S>(call, task / query_blocks, task % query_blocks, shared); });

  if (call.dmask) dmask_bwd<S>(call, shared, num_threads);
  const bool heads_suffice = units % num_threads == 0 || units >= 8 * num_threads || key_blocks == 1;
  if (heads_suffice) {
    parallel_tasks(units, num_threads, [&](int64_t unit, int thread) {
      for (int64_t block = 0; block < key_blocks; block++)
        key_block_bwd<S>(call, unit / p.Hkv, unit % p.Hkv, block, false, shared, shared.scratch(thread, p.E, p.Ev));
    });
  } else {
    memset((void*)shared.progress, 0, units * key_blocks * sizeof(int64_t));
    parallel_tasks(units * key_blocks, num_threads, [&](int64_t task, int thread) {
      int64_t unit = task / key_blocks;
      key_block_bwd<S>(call, unit / p.Hkv, unit % p.Hkv, task % key_blocks, true, shared,
                       shared.scratch(thread, p.E, p.Ev));
    });
  }
  parallel_tasks(p.B * p.H * query_blocks, num_threads,
                 [&](int64_t task, int) { finish_dq<S>(call, task / query_blocks, task % query_blocks, shared); });
}

}  // namespace

void fwd(const AttentionFwd& call, int num_threads) {
  for_dtype(call.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    // The rows of a group must fit the lanes of one block, which are 4 for double in the smallest vectors; from 4 rows
    // on, the products of pairs win. Keys that do not fill vectors are read element by element there, once a row (8
    // rows of 8 columns: 3.5x slower).
    constexpr int64_t lanes = kQueries<Acc<S>>, most = kTerms<Operand<S>> > 1 ? 3 : lanes;
    const int64_t few = call.of.E % kLanes<Acc<S>> ? 2 : min_of(kFewRows, most);
    if (call.of.L * (call.of.H / call.of.Hkv) <= few) return decode<S>(call, num_threads);
    // With fewer tasks than four a thread, the last would run alone for long.
    const int64_t blocks = call.of.B * call.of.H * ceil_div(call.of.L, lanes);
    const int together = (int)min_of(kTogether<S>, max_of(1, blocks / (4 * num_threads)));
    for_query_blocks<S>(call, num_threads, together, [&](auto* queries, int count, int64_t kv_head, auto& scratch) {
      attend<S>(call, queries, count, kv_head, scratch);
    });
  });
}

void bwd(const AttentionBwd& p, int num_threads) {
  for_dtype(p.of.dtype, [&](auto storage) { bwd_typed<decltype(storage)>(p, num_threads); });
}

void weights(const AttentionFwd& call, int num_threads) {
  for_dtype(call.of.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_query_blocks<S>(call, num_threads, 1, [&](auto* queries, int, int64_t kv_head, auto& scratch) {
      weights_of_block<S>(call, *queries, kv_head, scratch);
    });
  });
}

void workspace(const AttentionWorkspace& p, int) {
  Carver size = {nullptr, 0};
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    typedef Acc<S> A;
    if (p.pass == AttentionPass::bwd) {
      BwdWorkspace<Operand<S>>(size, p, p.num_threads);
      return;
    }
    for (int thread = 0; thread < p.num_threads; thread++) FwdScratch<S>(size, p.E, p.Ev);
    if (p.L <= kFewRows) {  // either may be taken
      Carver decode = {nullptr, 0};
      DecodeWorkspace<A>(decode, p, p.num_threads);
      size.used = max_of(size.used, decode.used);
    }
  });
  *p.bytes = size.used;
}

}  // namespace PF_ISA::attention
