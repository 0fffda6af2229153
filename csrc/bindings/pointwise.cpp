#include "pointwise.h"

#include "bindings.h"

PF_KERNEL(pointwise, activation_fwd, ActivationFwd)
PF_KERNEL(pointwise, activation_bwd, ActivationBwd)
PF_KERNEL(pointwise, activation_bwd_bwd, ActivationBwdBwd)
PF_KERNEL(pointwise, dropout, Dropout)
PF_KERNEL(pointwise, dropout_form, DropoutForm)
PF_KERNEL(pointwise, philox_words, PhiloxWords)
PF_KERNEL(pointwise, prelu_fwd, PreluFwd)
PF_KERNEL(pointwise, prelu_bwd, PreluBwd)
PF_KERNEL(pointwise, rrelu, Rrelu)
PF_KERNEL(pointwise, gated_fwd, GatedFwd)
PF_KERNEL(pointwise, gated_bwd, GatedBwd)
PF_KERNEL(pointwise, gated_bwd_bwd, GatedBwdBwd)
PF_KERNEL(pointwise, bias_act_fwd, BiasActFwd)
PF_KERNEL(pointwise, bias_act_bwd, BiasActBwd)

static Channels read_channels(Reader& r) {
  Channels of;
  of.channels = r.size("channels");
  of.inner = r.size("inner");
  return of;
}

static Epilogue read_epilogue(Reader& r) {
  Epilogue e;
  e.bias = r.address("bias");
  e.of = read_channels(r);
  e.activation = read_activation(r, -1);
  e.gain = r.number("gain");
  e.clamp = r.number("clamp");
  e.seed = r.address<const int64_t>("seed");
  e.drop_below = r.word("drop_below");
  e.keep_scale = r.number("keep_scale");
  return e;
}

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
    launch(pointwise::activation_fwd, read_activation_fwd(problem), num_threads);
  });
  m.def("activation_bwd", [](const py::tuple& problem, int num_threads) {
    launch(pointwise::activation_bwd, read_activation_bwd(problem), num_threads);
  });
  m.def("activation_bwd_bwd", [](const py::tuple& problem, int num_threads) {
    launch(pointwise::activation_bwd_bwd, read_activation_bwd_bwd(problem), num_threads);
  });
  m.def("channel_workspace",
        [](int64_t n, int64_t channels) { return channel_parts(n, channels) * channels * kBytesOfChannelSums; });
  m.def("prelu_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "prelu_fwd", "problem");
    PreluFwd p;
    p.x = r.address("x");
    p.weight = r.address("weight");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.of = read_channels(r);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::prelu_fwd, p, num_threads);
  });
  m.def("prelu_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "prelu_bwd", "problem");
    PreluBwd p;
    p.dy = r.address("dy");
    p.x = r.address("x");
    p.weight = r.address("weight");
    p.dx = r.address<void>("dx");
    p.dweight = r.address<void>("dweight");
    p.workspace = r.address<void>("workspace");
    p.n = r.size("n");
    p.of = read_channels(r);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::prelu_bwd, p, num_threads);
  });
  m.def("rrelu", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "rrelu", "problem");
    Rrelu p;
    p.d = r.address("d");
    p.x = r.address("x");
    p.seed = r.address<const int64_t>("seed");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.lower = r.number("lower");
    p.upper = r.number("upper");
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::rrelu, p, num_threads);
  });
  m.def("gated_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "gated_fwd", "problem");
    GatedFwd p;
    p.gate = r.address("gate");
    p.value = r.address("value");
    p.gate_row_stride = r.size("gate_row_stride");
    p.value_row_stride = r.size("value_row_stride");
    p.y = r.address<void>("y");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.activation = read_activation(r, -1);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::gated_fwd, p, num_threads);
  });
  m.def("gated_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "gated_bwd", "problem");
    GatedBwd p;
    p.dy = r.address("dy");
    p.gate = r.address("gate");
    p.value = r.address("value");
    p.gate_row_stride = r.size("gate_row_stride");
    p.value_row_stride = r.size("value_row_stride");
    p.dgate = r.address<void>("dgate");
    p.dvalue = r.address<void>("dvalue");
    p.dgate_row_stride = r.size("dgate_row_stride");
    p.dvalue_row_stride = r.size("dvalue_row_stride");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.activation = read_activation(r, -1);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::gated_bwd, p, num_threads);
  });
  m.def("gated_bwd_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "gated_bwd_bwd", "problem");
    GatedBwdBwd p;
    p.ddgate = r.address("ddgate");
    p.ddvalue = r.address("ddvalue");
    p.dy = r.address("dy");
    p.gate = r.address("gate");
    p.value = r.address("value");
    p.ddgate_row_stride = r.size("ddgate_row_stride");
    p.ddvalue_row_stride = r.size("ddvalue_row_stride");
    p.gate_row_stride = r.size("gate_row_stride");
    p.value_row_stride = r.size("value_row_stride");
    p.ddy = r.address<void>("ddy");
    p.dgate = r.address<void>("dgate");
    p.dvalue = r.address<void>("dvalue");
    p.dgate_row_stride = r.size("dgate_row_stride");
    p.dvalue_row_stride = r.size("dvalue_row_stride");
    p.rows = r.size("rows");
    p.cols = r.size("cols");
    p.activation = read_activation(r, -1);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::gated_bwd_bwd, p, num_threads);
  });
  m.def("bias_act_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "bias_act_fwd", "problem");
    BiasActFwd p;
    p.x = r.address("x");
    p.residual = r.address("residual");
    p.y = r.address<void>("y");
    p.n = r.size("n");
    p.epilogue = read_epilogue(r);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::bias_act_fwd, p, num_threads);
  });
  m.def("bias_act_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "bias_act_bwd", "problem");
    BiasActBwd p;
    p.dy = r.address("dy");
    p.x = r.address("x");
    p.dx = r.address<void>("dx");
    p.dbias = r.address<void>("dbias");
    p.workspace = r.address<void>("workspace");
    p.n = r.size("n");
    p.epilogue = read_epilogue(r);
    p.dtype = r.member<Dtype>("dtype", kDtypes);
    r.done();
    launch(pointwise::bias_act_bwd, p, num_threads);
  });
}
