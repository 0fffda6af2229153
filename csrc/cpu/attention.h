// The attention kernels. attention_tile.h: products; attention_pack.h: their operands;
// attention_scores.h: masks; then one file a direction.
#include "attention_tile.h"
#include "attention_pack.h"
#include "attention_scores.h"
#include "attention_fwd.h"
#include "attention_bwd.h"
#include "attention_weights.h"

void attention_workspace(const AttentionWorkspace& p, int) {
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
