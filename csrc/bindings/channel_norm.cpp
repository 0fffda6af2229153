#include "../common/channel_norm.h"
#include "activation.h"
#include "bindings.h"
#include "reader.h"

PF_KERNEL(norm, channel_norm_fwd, ChannelNormFwd)
PF_KERNEL(norm, channel_norm_bwd, ChannelNormBwd)
PF_KERNEL(norm, channel_norm_bwd_bwd, ChannelNormBwdBwd)

static ChannelNormShape read_shape(Reader& r) {
  ChannelNormShape s;
  s.batch = r.size("batch");
  s.channels = r.size("channels");
  s.positions = r.size("positions");
  s.groups = r.size("groups");
  s.is_last = r.flag("is_last");
  s.dtype = r.member<Dtype>("dtype", kDtypes);
  return s;
}

// The tuples that ops/norm/_cpu_channels.py makes.
PF_BINDINGS(m) {
  m.def("channel_norm_workspace", [](const py::tuple& shape) {
    Reader r(shape, "channel_norm_workspace", "shape");
    const ChannelNormShape s = read_shape(r);
    r.done();
    return channel_norm_plan(s, kChannelNormRoom).bytes;
  });
  m.def("channel_norm_second_workspace", [](const py::tuple& shape) {
    Reader r(shape, "channel_norm_second_workspace", "shape");
    const ChannelNormShape s = read_shape(r);
    r.done();
    return channel_norm_plan(s, kChannelNormSecondRoom).bytes;
  });
  m.def("channel_norm_fwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "channel_norm_fwd", "problem");
    ChannelNormFwd p;
    p.shape = read_shape(r);
    p.x = r.address("x");
    p.residual = r.address("residual");
    p.weight = r.address("weight");
    p.bias = r.address("bias");
    p.running_mean = r.address("running_mean");
    p.running_var = r.address("running_var");
    p.y = r.address<void>("y");
    p.mean = r.address<void>("mean");
    p.rstd = r.address<void>("rstd");
    p.new_running_mean = r.address<void>("new_running_mean");
    p.new_running_var = r.address<void>("new_running_var");
    p.workspace = r.address<void>("workspace");
    p.uses_input = r.flag("uses_input");
    p.momentum = r.number("momentum");
    p.eps = r.number("eps");
    p.ending = r.member<Ending>("ending", kEndings);
    p.activation = read_activation(r, -1);
    r.done();
    launch(norm::channel_norm_fwd, p, num_threads);
  });
  m.def("channel_norm_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "channel_norm_bwd", "problem");
    ChannelNormBwd p;
    p.shape = read_shape(r);
    p.dy = r.address("dy");
    p.x = r.address("x");
    p.residual = r.address("residual");
    p.weight = r.address("weight");
    p.bias = r.address("bias");
    p.mean = r.address("mean");
    p.rstd = r.address("rstd");
    p.dx = r.address<void>("dx");
    p.dresidual = r.address<void>("dresidual");
    p.dweight = r.address<void>("dweight");
    p.dbias = r.address<void>("dbias");
    p.workspace = r.address<void>("workspace");
    p.uses_input = r.flag("uses_input");
    p.ending = r.member<Ending>("ending", kEndings);
    p.activation = read_activation(r, -1);
    p.saves_output = r.flag("saves_output");
    r.done();
    launch(norm::channel_norm_bwd, p, num_threads);
  });
  m.def("channel_norm_bwd_bwd", [](const py::tuple& problem, int num_threads) {
    Reader r(problem, "channel_norm_bwd_bwd", "problem");
    ChannelNormBwdBwd p;
    p.shape = read_shape(r);
    p.ddx = r.address("ddx");
    p.ddresidual = r.address("ddresidual");
    p.ddweight = r.address("ddweight");
    p.ddbias = r.address("ddbias");
    p.dy = r.address("dy");
    p.x = r.address("x");
    p.residual = r.address("residual");
    p.weight = r.address("weight");
    p.bias = r.address("bias");
    p.mean = r.address("mean");
    p.rstd = r.address("rstd");
    p.ddy = r.address<void>("ddy");
    p.dx = r.address<void>("dx");
    p.dresidual = r.address<void>("dresidual");
    p.dweight = r.address<void>("dweight");
    p.dbias = r.address<void>("dbias");
    p.workspace = r.address<void>("workspace");
    p.uses_input = r.flag("uses_input");
    p.ending = r.member<Ending>("ending", kEndings);
    p.activation = read_activation(r, -1);
    p.is_curved = r.flag("is_curved");
    r.done();
    launch(norm::channel_norm_bwd_bwd, p, num_threads);
  });
}
