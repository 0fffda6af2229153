#include <array>
#include <atomic>

#include <pybind11/stl.h>

#include "../common/core.h"
#include "../common/recurrent.h"
#include "bindings.h"

PF_KERNEL(core, fingerprint, Fingerprint)
PF_KERNEL(recurrent, pack, RnnPack)
PF_KERNEL(recurrent, sizes, RnnSizes)
PF_KERNEL(recurrent, fwd, RnnFwd)
PF_KERNEL(recurrent, bwd, RnnBwd)

namespace {

// The tuples that _native/rnn.py makes, in its order.
RnnShape shape(const py::tuple& t) {
  auto size = [&](int i) { return t[i].cast<int64_t>(); };
  return {size(0), size(1), size(2), size(3), size(4), size(5), (Cell)size(6), size(7) != 0, (Dtype)size(8)};
}

RnnRows rows(const py::tuple& t) {
  auto size = [&](int i) { return t[i].cast<int64_t>(); };
  auto indices = [&](int i) { return at<const int64_t>(t[i].cast<Address>()); };
  return {indices(0), indices(1), indices(2), size(3) != 0, size(4), size(5), size(6), size(7)};
}

typedef std::vector<std::array<Address, 5>> Weights;  // w_ih, w_hh, b_ih, b_hh, w_hr of each direction

template <class To>
void copy_weights(const Weights& from, To& to) {
  for (size_t d = 0; d < from.size() && d < kMaxDirections; d++)
    to[d] = {at<void>(from[d][0]), at<void>(from[d][1]), at<void>(from[d][2]), at<void>(from[d][3]),
             at<void>(from[d][4])};
}

typedef std::vector<std::array<int64_t, 3>> Places;  // (address, rows, columns) of each weight, dense

// Packed weights that are kept, and what their weights were when they were packed. A step of a stream brings little
// but addresses: turning Python's tuples and lists into structs costs as much as a small step.
struct RnnKept {
  RnnFwd p = {};
  Places weights;
  int64_t whole_rows;  // from so many sequences times steps on, a call compares every element, else those of one phase
  std::array<uint64_t, kPhases> phases;
  uint64_t whole;
  mutable std::atomic<uint32_t> calls{0};

  // Before they are packed: what changes from here on is seen.
  RnnKept(const py::tuple& of, Places of_weights, int64_t from_rows, int num_threads)
      : weights(std::move(of_weights)), whole_rows(from_rows) {
    p.shape = shape(of);
    for (int64_t i = 0; i < kPhases; i++) phases[i] = fingerprint_now(i, num_threads);
    whole = fingerprint_now(-1, num_threads);
  }
  // One hash of all weights' values.
  uint64_t fingerprint_now(int64_t phase, int num_threads) const {
    const int64_t bytes = p.shape.dtype == Dtype::f64 ? 8 : p.shape.dtype == Dtype::f32 ? 4 : 2;
    uint64_t all = 0;
    for (const auto& [address, rows, columns] : weights) {
      uint64_t hash = 0;
      call(core::fingerprint, {at<void>(address), rows, columns * bytes, phase, &hash}, num_threads);
      all = (all ^ hash) * 0x9e3779b97f4a7c15ull;
    }
    return all;
  }
  // Are the weights, which the caller has seen where they lay, those that were packed, as far as a call of this many
  // sequences times steps looks?
  bool is_current(int64_t rows, int num_threads) const {
    if (rows >= whole_rows) return fingerprint_now(-1, num_threads) == whole;
    const int64_t phase = calls++ % kPhases;
    return fingerprint_now(phase, num_threads) == phases[phase];
  }

  // A layer in one direction, x and y dense: their rows are `step` and `row` apart from step to step and from sequence
  // to sequence. False when the weights are not those that were packed.
  bool run(int64_t length, int64_t batch, Address x, int64_t step, int64_t row, Address h, Address c, Address y,
           Address h_n, Address c_n, Address workspace, int num_threads) const {
    py::gil_scoped_release release;
    if (!is_current(length * batch, num_threads)) return false;
    RnnFwd now = p;
    now.shape.length = length;
    now.shape.batch = batch;
    now.rows = {nullptr, nullptr, nullptr, false, step * p.shape.input, row * p.shape.input, step, row};
    now.x = at<void>(x);
    now.h_0 = at<void>(h);
    now.c_0 = at<void>(c);
    now.y = at<void>(y);
    now.h_n = at<void>(h_n);  // maybe where y is
    now.c_n = at<void>(c_n);
    now.workspace = at<void>(workspace);
    call(recurrent::fwd, now, num_threads);
    return true;
  }
};

}  // namespace

PF_BINDINGS(m) {
  // (bytes of the panels, bytes of the workspace) of a forward or backward with this number of threads
  m.def("rnn_sizes", [](const py::tuple& of, int64_t rows, bool backward, int num_threads) {
    int64_t panels_bytes = 0, workspace_bytes = 0;
    call(recurrent::sizes, {shape(of), rows, backward, &panels_bytes, &workspace_bytes}, num_threads);
    return py::make_tuple(panels_bytes, workspace_bytes);
  });
  m.def("rnn_pack", [](const py::tuple& of, const Weights& weights, Address panels, bool backward, int num_threads) {
    RnnPack p = {};
    p.shape = shape(of);
    copy_weights(weights, p.weights);
    p.panels = at<void>(panels);
    p.backward = backward;
    launch(recurrent::pack, p, num_threads);
  });
  py::class_<RnnKept>(m, "RnnKept")
      .def(py::init<const py::tuple&, Places, int64_t, int>())
      .def("set_panels", [](RnnKept& kept, Address panels) { kept.p.panels = at<void>(panels); })
      .def("is_current", &RnnKept::is_current, py::call_guard<py::gil_scoped_release>())
      .def("run", &RnnKept::run);
  m.def("rnn_fwd",
        [](const py::tuple& of, const py::tuple& of_rows, Address x, Address panels, Address h_0, Address c_0,
           Address y, Address h_n, Address c_n, Address cells, Address gates, Address workspace, int num_threads) {
          launch(recurrent::fwd,
                 {shape(of), rows(of_rows), at<void>(x), at<void>(panels), at<void>(h_0), at<void>(c_0), at<void>(y),
                  at<void>(h_n), at<void>(c_n), at<void>(cells), at<void>(gates), at<void>(workspace)},
                 num_threads);
        });
  m.def("rnn_bwd", [](const py::tuple& of, const py::tuple& of_rows, const Weights& weights, const Weights& grads,
                      const std::array<Address, 16>& tensors, int num_threads) {
    RnnBwd p = {};
    p.shape = shape(of);
    p.rows = rows(of_rows);
    copy_weights(weights, p.weights);
    copy_weights(grads, p.grads);
    int i = 0;
    for (const void** tensor :
         {&p.x, &p.panels, &p.fwd_panels, &p.h_0, &p.c_0, &p.y, &p.cells, &p.gates, &p.dy, &p.dh_n, &p.dc_n, &p.dcells})
      *tensor = at<void>(tensors[i++]);
    for (void** tensor : {&p.dx, &p.dh_0, &p.dc_0, &p.workspace}) *tensor = at<void>(tensors[i++]);
    launch(recurrent::bwd, p, num_threads);
  });
}
