#include "../common/pointwise.h"
#include "activation.h"
#include "bindings.h"

PF_KERNEL(pointwise, activation_fwd, ActivationFwd)
PF_KERNEL(pointwise, activation_bwd, ActivationBwd)
PF_KERNEL(pointwise, dropout, Dropout)
PF_KERNEL(pointwise, dropout_form, DropoutForm)
PF_KERNEL(pointwise, philox_words, PhiloxWords)

PF_BINDINGS(m) {
  m.def("dropout", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "dropout", "problem");
    Dropout p;
    p.x = r.address("x");
    p.seed = r.address<const int64_t>("seed");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.drop_below = r.word("drop_below");
    p.keep_scale = r.number("keep_scale");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::dropout, p, num_threads);
  });
  m.def("dropout_form", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "dropout_form", "problem");
    DropoutForm p;
    p.x = r.address("x");
    p.seed = r.address<const int64_t>("seed");
    p.y = r.address<void>("y");
    p.factors = r.address<void>("factors");
    p.batch = r.size("batch");
    p.channels = r.size("channels");
    p.inner = r.size("inner");
    p.is_channels_last = r.flag("is_channels_last");
    p.drop_below = r.word("drop_below");
    p.keep_scale = r.number("keep_scale");
    p.kept_shift = r.number("kept_shift");
    p.dropped_shift = r.number("dropped_shift");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::dropout_form, p, num_threads);
  });
  m.def("philox_words", [](Address counters, Address words, int64_t n, uint32_t key0, uint32_t key1) {
    launch(pointwise::philox_words, {at<uint32_t>(counters), at<uint32_t>(words), n, key0, key1}, 1);
  });
  m.def("activation_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "activation_fwd", "problem");
    ActivationFwd p;
    p.x = r.address("x");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.activation = read_activation(r);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::activation_fwd, p, num_threads);
  });
  m.def("activation_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "activation_bwd", "problem");
    ActivationBwd p;
    p.dy = r.address("dy");
    p.saved = r.address("saved");
    p.dx = r.address<void>("dx");
    p.n = r.size("n");
    p.activation = read_activation(r);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::activation_bwd, p, num_threads);
  });
}
