// RNN, LSTM and GRU: tile.h has the products, panels.h says how weights lie, team.h how threads share a layer; then one
// file for each pass.
#include "backward_products.h"
#include "forward.h"

namespace PF_ISA::recurrent {

// A plan for fewer threads may want more memory: any number of them may be given in the end.
void sizes(const RnnSizes& p, int num_threads) {
  const RnnShape& s = p.shape;
  for_dtype(s.dtype, [&](auto storage) {
    using S = decltype(storage);
    using T = Operand<S>;
    *p.workspace_bytes = 0;
    for_gates(s.cell, [&](auto gates) {
      using Panels = FwdPanels<T, decltype(gates)::count>;
      const int64_t size = p.backward ? BwdPanels<T>(s, nullptr).direction_size : Panels(s, nullptr).direction_size;
      *p.panels_bytes = size * s.directions * sizeof(T);
      for (int team = 1; team <= num_threads; team++) {
        Carver count = {nullptr, 0};
        count.take<Arrival>(num_threads);
        if (p.backward) {
          const BwdMemory<T> memory(count, s, p.rows);
          const int64_t products = count.used + products_bytes(s, memory, p.rows, num_threads);
          StepMemory<T>(count, s, plan_team(s, team), Part{});
          count.used = max_of(count.used, products);
        } else {
          FwdMemory<T>(count, s, plan_team(s, team), Panels::units, Part{});
        }
        *p.workspace_bytes = max_of(*p.workspace_bytes, count.used);
      }
    });
  });
}

}  // namespace PF_ISA::recurrent
