#include "../recurrent.h"

#include "../../common/recurrence.h"
#include "launch.h"

PF_CUDA_KERNEL(recurrent, walk_sizes, RnnWalkSizes)
PF_CUDA_KERNEL(recurrent, walk_fwd, RnnWalkFwd)
PF_CUDA_KERNEL(recurrent, walk_bwd, RnnWalkBwd)
PF_CUDA_KERNEL(recurrent, activate, RnnActivate)
PF_CUDA_KERNEL(recurrent, gather, RnnGather)

// The tuples that ops/recurrent/_cuda.py makes.
namespace {

RnnWalk read_walk(const py::tuple& of, const py::tuple& of_rows, const py::list& weights, const py::tuple& rest,
                  const char* operation) {
  RnnWalk w = {};
  w.shape = shape_of(of, operation);
  w.rows = rows_of(of_rows, operation);
  read_weights(weights, w.shape, operation, "weights", w.weights);
  Reader r(rest, operation, "walk");
  w.positions = r.size("positions");
  w.allows_tf32 = r.flag("allows_tf32");
  w.workspace = r.address<void>("workspace");
  r.done();
  return w;
}

}  // namespace

PF_BINDINGS(m) {
  m.attr("CELLS") = cells_of_recurrent();
  // Bytes of the workspace of a walk; 0 where this device cannot hold its weights.
  m.def("rnn_walk_workspace", [](const py::tuple& of, bool allows_tf32, bool backward, int device) {
    int64_t bytes = 0;
    launch("rnn_walk_workspace", pf::cuda::recurrent::walk_sizes,
           {shape_of(of, "rnn_walk_workspace"), allows_tf32, backward, &bytes}, device, 0);
    return bytes;
  });
  m.def("rnn_walk_fwd", [](const py::tuple& problem, int device, Address stream) {
    const auto [shape, layout, weights, rest, tensors] = parts_of<5>(problem, "rnn_walk_fwd");
    Reader r(tensors, "rnn_walk_fwd", "tensors");
    RnnWalkFwd p = {};
    p.walk = read_walk(shape, layout, weights, rest, "rnn_walk_fwd");
    p.x_gates = r.address<const float>("x_gates");
    p.x_slots = r.size("x_slots");
    p.h_0 = r.address("h_0");
    p.c_0 = r.address("c_0");
    p.y = r.address<void>("y");
    p.h_n = r.address<void>("h_n");
    p.c_n = r.address<void>("c_n");
    p.cells = r.address<float>("cells");
    p.gates = r.address<float>("gates");
    r.done();
    launch("rnn_walk_fwd", pf::cuda::recurrent::walk_fwd, p, device, stream);
  });
  m.def("rnn_walk_bwd", [](const py::tuple& problem, int device, Address stream) {
    const auto [shape, layout, weights, rest, tensors] = parts_of<5>(problem, "rnn_walk_bwd");
    Reader r(tensors, "rnn_walk_bwd", "tensors");
    RnnWalkBwd p = {};
    p.walk = read_walk(shape, layout, weights, rest, "rnn_walk_bwd");
    p.h_0 = r.address("h_0");
    p.c_0 = r.address("c_0");
    p.y = r.address("y");
    p.cells = r.address<const float>("cells");
    p.gates = r.address<const float>("gates");
    p.gates_lie_as_y = r.flag("gates_lie_as_y");
    p.dy = r.address("dy");
    p.dh_n = r.address("dh_n");
    p.dc_n = r.address("dc_n");
    p.dcells = r.address<const float>("dcells");
    p.dh_0 = r.address<void>("dh_0");
    p.dc_0 = r.address<void>("dc_0");
    p.dgates = r.address<void>("dgates");
    r.done();
    launch("rnn_walk_bwd", pf::cuda::recurrent::walk_bwd, p, device, stream);
  });
  m.def("rnn_activate", [](const py::tuple& problem, int device, Address stream) {
    const auto [shape, tensors] = parts_of<2>(problem, "rnn_activate");
    Reader r(tensors, "rnn_activate", "tensors");
    RnnActivate p = {};
    p.shape = shape_of(shape, "rnn_activate");
    p.weights.b_ih = r.address("b_ih");
    p.weights.b_hh = r.address("b_hh");
    p.gates = r.address<float>("gates");
    p.rows = r.size("rows");
    r.done();
    launch("rnn_activate", pf::cuda::recurrent::activate, p, device, stream);
  });
  m.def("rnn_gather", [](const py::tuple& problem, int device, Address stream) {
    const auto [shape, layout, tensors] = parts_of<3>(problem, "rnn_gather");
    Reader r(tensors, "rnn_gather", "tensors");
    RnnGather p = {};
    p.shape = shape_of(shape, "rnn_gather");
    p.rows = rows_of(layout, "rnn_gather");
    p.positions = r.size("positions");
    p.from_stride = r.size("from_stride");
    p.from = r.address("from");
    p.initial = r.address("initial");
    p.to = r.address<void>("to");
    r.done();
    launch("rnn_gather", pf::cuda::recurrent::gather, p, device, stream);
  });
}
