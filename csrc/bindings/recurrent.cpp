#include "recurrent.h"

#include <pybind11/stl.h>

#include "bindings.h"
#include "fingerprints.h"

PF_KERNEL(recurrent, pack, RnnPack)
PF_KERNEL(recurrent, sizes, RnnSizes)
PF_KERNEL(recurrent, fwd, RnnFwd)
PF_KERNEL(recurrent, bwd, RnnBwd)

namespace {

typedef std::vector<std::array<int64_t, 3>> Places;  // (address, rows, columns) of each weight, dense

std::vector<Matrix> matrices_of(const Places& places, Dtype dtype) {
  const int64_t bytes = dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
  std::vector<Matrix> matrices;
  for (const auto& [address, rows, columns] : places) matrices.push_back({address, rows, columns * bytes});
  return matrices;
}

// Packed weights that are kept: a step of a stream brings little but addresses.
struct RnnKept {
  RnnFwd p = {};
  int64_t whole_rows;  // from so many sequences times steps on, a call compares every element, else those of one phase
  Fingerprints fingerprints;

  RnnKept(const py::tuple& of, const Places& weights, int64_t from_rows, int num_threads)
      : p{shape_of(of, "RnnKept")},
        whole_rows(from_rows),
        fingerprints(matrices_of(weights, p.shape.dtype), num_threads) {}
  bool is_current(int64_t rows, int num_threads) const {
    return fingerprints.is_current(rows >= whole_rows, num_threads);
  }

  // A layer in one direction, x and y dense: their rows are `step` and `row` apart from step to step and from sequence
  // to sequence. False when the weights are not those that were packed.
  bool run(const py::tuple& of, int num_threads) const {
    RnnFwd now = p;
    Reader r(of, "RnnKept.run", "call");
    now.shape.length = r.size("length");
    now.shape.batch = r.size("batch");
    now.rows = {};
    now.rows.y_step_rows = r.size("step");
    now.rows.y_row_rows = r.size("row");
    now.rows.x_step_stride = now.rows.y_step_rows * p.shape.input;
    now.rows.x_row_stride = now.rows.y_row_rows * p.shape.input;
    now.x = r.address("x");
    now.h_0 = r.address("h_0");
    now.c_0 = r.address("c_0");
    now.y = r.address<void>("y");
    now.h_n = r.address<void>("h_n");  // maybe where y is
    now.c_n = r.address<void>("c_n");
    now.workspace = r.address<void>("workspace");
    r.done();
    py::gil_scoped_release release;
    if (!is_current(now.shape.length * now.shape.batch, num_threads)) return false;
    call(recurrent::fwd, now, num_threads);
    return true;
  }
};

}  // namespace

PF_BINDINGS(m) {
  const py::dict cells = cells_of_recurrent();
  m.attr("CELLS") = cells;
  py::dict gates;
  for (const auto& cell : cells) gates[cell.first] = gate_count((Cell)cell.second.cast<int>());
  m.attr("GATES") = gates;
  // (bytes of the panels, bytes of the workspace) of a forward or backward with this number of threads
  m.def("rnn_sizes", [](const py::tuple& of, int64_t rows, bool backward, int num_threads) {
    int64_t panels_bytes = 0, workspace_bytes = 0;
    call(recurrent::sizes, {shape_of(of, "rnn_sizes"), rows, backward, &panels_bytes, &workspace_bytes}, num_threads);
    return py::make_tuple(panels_bytes, workspace_bytes);
  });
  m.def("rnn_pack", [](const py::tuple& of, const py::list& weights, Address panels, bool backward, int num_threads) {
    RnnPack p = {};
    p.shape = shape_of(of, "rnn_pack");
    read_weights(weights, p.shape, "rnn_pack", "weights", p.weights);
    p.panels = at<void>(panels);
    p.backward = backward;
    launch(recurrent::pack, p, num_threads);
  });
  py::class_<RnnKept>(m, "RnnKept")
      .def(py::init<const py::tuple&, Places, int64_t, int>())
      .def("set_panels", [](RnnKept& kept, Address panels) { kept.p.panels = at<void>(panels); })
      .def("is_current", &RnnKept::is_current, py::call_guard<py::gil_scoped_release>())
      .def("run", &RnnKept::run);
  m.def("rnn_fwd", [](const py::tuple& of, const py::tuple& of_rows, const py::tuple& tensors, int num_threads) {
    RnnFwd p = {};
    p.shape = shape_of(of, "rnn_fwd");
    p.rows = rows_of(of_rows, "rnn_fwd");
    Reader r(tensors, "rnn_fwd", "tensors");
    p.x = r.address("x");
    p.panels = r.address("panels");
    p.h_0 = r.address("h_0");
    p.c_0 = r.address("c_0");
    p.y = r.address<void>("y");
    p.h_n = r.address<void>("h_n");
    p.c_n = r.address<void>("c_n");
    p.cells = r.address<void>("cells");
    p.gates = r.address<void>("gates");
    p.workspace = r.address<void>("workspace");
    r.done();
    launch(recurrent::fwd, p, num_threads);
  });
  m.def("rnn_bwd", [](const py::tuple& of, const py::tuple& of_rows, const py::list& weights, const py::list& grads,
                      const py::tuple& tensors, int num_threads) {
    RnnBwd p = {};
    p.shape = shape_of(of, "rnn_bwd");
    p.rows = rows_of(of_rows, "rnn_bwd");
    read_weights(weights, p.shape, "rnn_bwd", "weights", p.weights);
    read_weights(grads, p.shape, "rnn_bwd", "grads", p.grads);
    Reader r(tensors, "rnn_bwd", "tensors");
    p.x = r.address("x");
    p.panels = r.address("panels");
    p.fwd_panels = r.address("fwd_panels");
    p.h_0 = r.address("h_0");
    p.c_0 = r.address("c_0");
    p.y = r.address("y");
    p.cells = r.address("cells");
    p.gates = r.address("gates");
    p.dy = r.address("dy");
    p.dh_n = r.address("dh_n");
    p.dc_n = r.address("dc_n");
    p.dcells = r.address("dcells");
    p.dx = r.address<void>("dx");
    p.dh_0 = r.address<void>("dh_0");
    p.dc_0 = r.address<void>("dc_0");
    p.workspace = r.address<void>("workspace");
    r.done();
    launch(recurrent::bwd, p, num_threads);
  });
}
