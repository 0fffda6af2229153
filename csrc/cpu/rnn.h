// The recurrent kernels. rnn_tile.h: products; rnn_panels.h: how weights lie; rnn_team.h: threads;
// rnn_gates.h: activations; then the passes.
#include "rnn_tile.h"
#include "rnn_panels.h"
#include "rnn_team.h"
#include "rnn_gates.h"
#include "rnn_fwd.h"
#include "rnn_bwd.h"
#include "rnn_bwd_products.h"

// A plan for fewer threads may want more memory: any number of them may be given in the end.
void rnn_sizes(const RnnSizes& p, int num_threads) {
  const RnnShape& s = p.shape;
  for_dtype(s.dtype, [&](auto storage) {
    using T = Acc<decltype(storage)>;
    *p.workspace_bytes = 0;
    for_gates(s.cell, [&](auto gates) {
      using Panels = RnnPanels<T, decltype(gates)::count>;
      const int64_t size = p.backward ? RnnBwdPanels<T>(s, nullptr).direction_size : Panels(s, nullptr).direction_size;
      *p.panels_bytes = size * s.directions * sizeof(T);
      for (int team = 1; team <= num_threads; team++) {
        Carver count = {nullptr, 0};
        count.take<RnnArrival>(num_threads);
        if (p.backward) {
          const RnnBwdMemory<T> memory(count, s, p.rows);
          const int64_t products = count.used + rnn_products_bytes(s, memory, p.rows, num_threads);
          RnnStepMemory<T>(count, s, rnn_plan(s, team), RnnPart{});
          count.used = max_of(count.used, products);
        } else {
          RnnFwdMemory<T>(count, s, rnn_plan(s, team), Panels::units, RnnPart{});
        }
        *p.workspace_bytes = max_of(*p.workspace_bytes, count.used);
      }
    });
  });
}
