"""What crosses into the native module: every tuple is counted and every field named, and enums have one definition."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch

from pyflash.activations import ACTIVATIONS
from pyflash.losses import LOSSES

_cpu = pytest.importorskip("pyflash._cpu")
from pyflash.ops.attention._cpu import NO_MASK, _gradients, _problem  # noqa: E402
from pyflash.ops.core.native import DTYPES  # noqa: E402
from pyflash.ops.optim.update import RULES  # noqa: E402
from pyflash.ops.recurrent._cpu import CELLS, _Problem  # noqa: E402

COMMON = Path(__file__).resolve().parents[2] / "csrc/common"


def attention():
    q = k = v = torch.zeros(1, 1, 1, 8)
    lse = torch.zeros(1, 1, 1)
    problem = _problem(q, k, v, None, None, None, 0.0, 1.0, 0.0, -1, -1, 0)
    gradients = _gradients(q, None, q, lse, q, k, v, None, torch.zeros(64))
    return problem, gradients


def recurrent():
    weights = [torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4), torch.zeros(4)]
    return _Problem(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), weights, None, None, "lstm", False)


def attention_fwd(problem, results=(0, 0, 0, (0, 0, 0, 0), 0)):
    return lambda: _cpu.attention_fwd(problem, results, 1)


def attention_bwd(problem, gradients):
    return lambda: _cpu.attention_bwd(problem, gradients, 1)


# Problems of no elements, so that one which is taken though it does not fit reads nothing.
LINEAR = (0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, -1, 0.0, 0.0, 0)
LAYER_NORM = (*(0,) * 8, 0, 1, 1, 0, 1e-5, 0)
LAYER_NORM_BWD = (*(0,) * 10, 0, 1, 1, 0, 1, 0)
POOL_AXES = ((1, 1, 1, 1, 0, 1),) * 3
MAX_POOL = (0, 0, 0, 0, 1, *POOL_AXES, 1, 0)
MAX_POOL_BWD = (0, *MAX_POOL)
AVG_POOL = (0, 0, 0, 1, *POOL_AXES, False, 0, 0)
MAX_UNPOOL = (0, 0, 0, 0, 1, 1, 1, 0)
LOCAL_RESPONSE = (0, 0, 0, 0, 0, 1, 1, False, 0, 0, 1.0, 1.0, 1.0, 0)
CROSS_ENTROPY = (0, 0, 0, 0, 0, 1, 1, 0, 0, -100, 0.0, 0, 0, 0)
ROW_LOSS = (0, 0, 0, 2, 2, 2, 0, 0, 2, 0, 0.5, 0.0, True, False, True, 0, 0)
ELEMENTWISE_LOSS = (0, 0, *(0, 1, 1, 0) * 2, 0, 0, 0.0, True, 0, 0)
LOSS_PARTS = (0, 0, 0, 0, 0, 0.0, 0) * 2
NORMALIZE = (0, 0, 0, 0, 0, 1, 1, 0, 1.0, 0)
SPECTRAL_LAYER = (0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1e-12)
SPECTRAL_SCALE = (0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0)
GAN_FILTER = (0, 1, 1, True, False, 1.0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1)
UPFIRDN2D = (0, 0, *GAN_FILTER, 0, 1, 0, 0)
FILTERED_LRELU = (0, 0, 0, 0, *GAN_FILTER * 3, 0, 1, 1, 1.0, 1.0, -1.0, 0, 0)
TENSOR_STATS = (0, torch.zeros(1).data_ptr(), 0, 0, 0, 0.0, 1.0, 0, 0)  # of no groups
UPDATE = (0, 1.0, 1.0, 0.0, 1.0, 0.1, 0.0, 1.0, False, 0.9, 0.99, 1.0, 1e-8, 0.0, 0)  # a rule and its options
OPTIM_STEP = ([], [], [], [], [], [], [], *UPDATE, 0)  # of no parameters
TOTAL_NORM = ([], [], 0, 0)
SCALE_TENSORS = ([], [], 1.0, 0)
MINIBATCH_STDDEV = (0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1e-8, 0, 0)
LINEAR_SHAPE = (1, 1, 1, 1, 0, 1, 1, 0)
ACTIVATION_FWD = (0, 0, 0, 0, 0.0, 0.0, 0)
ACTIVATION_BWD = (0, *ACTIVATION_FWD)
ACTIVATION_BWD_BWD = (0, 0, *ACTIVATION_BWD)
DROPOUT = (0, 0, 0, 0, 1, 1.0, 0)
PRELU_FWD = (0, 0, 0, 0, 1, 1, 0)
PRELU_BWD = (0, 0, 0, 0, 0, 0, *PRELU_FWD[3:])
RRELU = (0, 0, 0, 0, 0, 0.1, 0.3, 0)
GATED_FWD = (0, 0, 0, 0, 0, 0, 1, -1, 0.0, 0.0, 0)
GATED_BWD = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, -1, 0.0, 0.0, 0)
GATED_BWD_BWD = (*(0,) * 15, 1, -1, 0.0, 0.0, 0)
EPILOGUE = (0, 1, 1, -1, 0.0, 0.0, 1.0, -1.0, 0, 0, 1.0)
BIAS_ACT_FWD = (0, 0, 0, 0, *EPILOGUE, 0)
BIAS_ACT_BWD = (0, 0, 0, 0, 0, 0, *EPILOGUE, 0)
EMBEDDING_FWD = (0, 0, 0, 0, 1, 4, 4, 1)
EMBEDDING_BWD = (*(0,) * 6, 1, 1, -1, False, *(0,) * 5, 1, 0)
EMBEDDING_BAG_FWD = (*(0,) * 8, 1, 1, 0, 1, -1, 0, 1, 0)
EMBEDDING_BAG_DOTS = (*(0,) * 6, 1, 1, 0, 1, 1, -1, 1, 0)
EMBEDDING_RENORM = (0, 0, 0, 0, 1, 1, 1, 1.0, 2.0, 1, 0)
DROPOUT_FORM = (0, 0, 0, 0, 0, 1, 1, False, 1, 1.0, 0.0, 0.0, 0)
ROTARY = (0, 0, 0, 0, (0, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 1), 8, 4, False, False, 0)
RESAMPLE = (0, 0, *(0,) * 18, 0, 1, 0.0, 0, 0)
ATTENTION_SHAPE = ((1, 1, 1, 8), 1, 8, 0, 0)


def linear_fwd(problem):
    return lambda: _cpu.linear_fwd(problem, 1)


def replaced(fields, place, value):
    return (*fields[:place], value, *fields[place + 1 :])


def calls():
    problem, gradients = attention()
    layer = recurrent()
    shape, layout, weights = layer.shape, layer.layout, layer.weights
    tensors = (0,) * 16
    yield "attention_fwd: problem ends after 23 fields, before mask_type", attention_fwd(problem[:-1])
    yield "attention_fwd: problem has 25 fields, expected 24", attention_fwd((*problem, 0))
    yield "attention_fwd: q is 1.5, expected an address", attention_fwd(replaced(problem, 3, 1.5))
    yield r"attention_fwd: q_stride is \(1, 2\), expected 4 integers", attention_fwd(replaced(problem, 8, (1, 2)))
    yield "attention_fwd: scale is 'a', expected a number", attention_fwd(replaced(problem, 16, "a"))
    yield "attention_fwd: dtype is 4, expected a number from 0 to 3", attention_fwd(replaced(problem, 22, 4))
    yield "attention_fwd: mask_type is 5, expected a number from -1 to 4", attention_fwd(replaced(problem, 23, 5))
    yield (
        "attention_fwd: drop_below is 4294967296, expected a number from 0 to 4294967295",
        attention_fwd(replaced(problem, 18, 1 << 32)),
    )
    yield (
        "attention_fwd: drop_below is -1, expected a number from 0 to 4294967295",
        attention_fwd(replaced(problem, 18, -1)),
    )
    yield "attention_fwd: value_dim is -8, expected 0 or more", attention_fwd(replaced(problem, 2, -8))
    yield "attention_fwd: q_size is -1, expected 0 or more", attention_fwd(replaced(problem, 0, (1, -1, 1, 8)))
    yield "attention_fwd: results ends after 4 fields, before workspace", attention_fwd(problem, (0, 0, 0, (0,) * 4))
    yield "attention_fwd: out is None, expected an address", attention_fwd(problem, (None, 0, 0, (0,) * 4, 0))
    yield "attention_bwd: gradients ends after 16 fields, before of_weights", attention_bwd(problem, gradients[:-1])
    yield "attention_bwd: of_weights is 1, expected True or False", attention_bwd(problem, (*gradients[:-1], 1))
    most = len(ACTIVATIONS) - 1
    for number in (-2, len(ACTIVATIONS)):
        yield (
            f"linear_fwd: activation is {number}, expected a number from -1 to {most}",
            linear_fwd(replaced(LINEAR, 14, number)),
        )
    yield "linear_fwd: bias is None, expected an address", linear_fwd(replaced(LINEAR, 6, None))
    yield "layer_norm_fwd: eps is 'a', expected a number", lambda: _cpu.layer_norm_fwd(replaced(LAYER_NORM, 12, "a"), 1)
    yield (
        "attention_workspace: pass is 2, expected a number from 0 to 1",
        lambda: _cpu.attention_workspace(replaced(ATTENTION_SHAPE, 4, 2), 1),
    )
    yield "rnn_sizes: length is -1, expected 0 or more", lambda: _cpu.rnn_sizes((-1, *shape[1:]), 1, False, 1)
    yield "rnn_sizes: shape ends after 8 fields, before dtype", lambda: _cpu.rnn_sizes(shape[:-1], 1, False, 1)
    yield (
        "rnn_sizes: directions is 3, expected a number from 1 to 2",
        lambda: _cpu.rnn_sizes(replaced(shape, 5, 3), 1, False, 1),
    )
    yield "rnn_pack: weights are those of 2 directions", lambda: _cpu.rnn_pack(shape, weights * 2, 0, False, 1)
    yield (
        "rnn_pack: weights ends after 4 fields, before w_hr",
        lambda: _cpu.rnn_pack(shape, [weights[0][:-1]], 0, False, 1),
    )
    yield (
        "rnn_fwd: tensors ends after 9 fields, before workspace",
        lambda: _cpu.rnn_fwd(shape, layout, tensors[:9], 1),
    )
    yield (
        "rnn_bwd: layout has 9 fields, expected 8",
        lambda: _cpu.rnn_bwd(shape, (*layout, 0), weights, weights, tensors, 1),
    )
    yield (
        "rnn_bwd: tensors ends after 15 fields, before workspace",
        lambda: _cpu.rnn_bwd(shape, layout, weights, weights, tensors[:-1], 1),
    )
    for name, fields, at in (
        ("activation_fwd", ACTIVATION_FWD, 3),
        ("activation_bwd", ACTIVATION_BWD, 4),
        ("activation_bwd_bwd", ACTIVATION_BWD_BWD, 6),
    ):
        wrong = partial(replaced, fields)
        for number in (-1, len(ACTIVATIONS)):
            yield (
                f"{name}: activation is {number}, expected a number from 0 to {most}",
                partial(getattr(_cpu, name), wrong(at, number), 1),
            )
        yield f"{name}: second parameter is 'a', expected a number", partial(getattr(_cpu, name), wrong(at + 2, "a"), 1)
    for name, fields, at in (("embedding_fwd", EMBEDDING_FWD, 7), ("embedding_bwd", EMBEDDING_BWD, 15)):
        yield (
            f"{name}: index_type is 2, expected a number from 0 to 1",
            partial(getattr(_cpu, name), replaced(fields, at, 2), 1),
        )
        yield (
            f"{name}: n is -1, expected 0 or more",
            partial(getattr(_cpu, name), replaced(fields, 3 if at == 7 else 4, -1), 1),
        )
    for name, fields, axis in (("max_pool_fwd", MAX_POOL, 5), ("avg_pool_bwd", AVG_POOL, 4)):
        yield (
            f"{name}: depth is None, expected 6 integers",
            partial(getattr(_cpu, name), replaced(fields, axis, None), 1),
        )
    yield "max_pool_bwd: index is 0, expected", partial(_cpu.max_pool_bwd, replaced(MAX_POOL_BWD, 9, 0), 1)
    yield (
        "dropout: drop_below is -1, expected a number from 0 to 4294967295",
        partial(_cpu.dropout, replaced(DROPOUT, 4, -1), 1),
    )


def test_layers_of_a_spectral_norm_are_counted_one_by_one():
    problem = 0, DTYPES[torch.float32]
    _cpu.spectral_sigma([], problem, 1)
    assert _cpu.spectral_sigma_workspace([SPECTRAL_LAYER]) >= 0
    for name, more in (("spectral_sigma", (problem, 1)), ("spectral_sigma_workspace", ())):
        call = getattr(_cpu, name)
        with pytest.raises(TypeError, match=f"{name}: layer ends after 10 fields, before eps"):
            call([SPECTRAL_LAYER, SPECTRAL_LAYER[:-1]], *more)
        with pytest.raises(TypeError, match=f"{name}: layer has 12 fields, expected 11"):
            call([(*SPECTRAL_LAYER, 0)], *more)
        with pytest.raises(TypeError, match=f"{name}: layer is of type int, expected a tuple"):
            call([1], *more)
        for field, place in (("outer", 1), ("rows", 2), ("inner", 3), ("iterations", 9)):
            with pytest.raises(TypeError, match=f"{name}: {field} is -1, expected 0 or more"):
                call([replaced(SPECTRAL_LAYER, place, -1)], *more)
    with pytest.raises(TypeError, match="spectral_sigma: dtype is 4, expected"):
        _cpu.spectral_sigma([], (0, 4), 1)


def _holding(function, tensor, *args):
    """`function`, and `tensor` alive as long as it is."""
    return function(*args)


def flat_problems():
    """(operation, function, fields, place of the dtype, places of the sizes): all but attention and recurrent layers."""
    yield "linear_fwd", _cpu.linear_fwd, LINEAR, 17, {
        "x_row_stride": 1, "x_column_stride": 2, "weight_row_stride": 4, "weight_column_stride": 5, "bias_row_stride": 7,
        "m": 11, "n": 12, "k": 13,
    }  # fmt: skip
    yield "linear_sums", _cpu.linear_sums, LINEAR, 17, {
        "x_row_stride": 1, "x_column_stride": 2, "weight_row_stride": 4, "weight_column_stride": 5, "bias_row_stride": 7,
        "m": 11, "n": 12, "k": 13,
    }  # fmt: skip
    yield "linear_sizes", _cpu.linear_sizes, LINEAR_SHAPE, 7, {
        "x_row_stride": 0, "x_column_stride": 1, "weight_row_stride": 2, "weight_column_stride": 3, "m": 4, "n": 5, "k": 6,
    }  # fmt: skip
    yield "layer_norm_fwd", _cpu.layer_norm_fwd, LAYER_NORM, 13, {
        "rows": 8, "cols": 9, "x_row_stride": 10, "residual_row_stride": 11,
    }  # fmt: skip
    yield "layer_norm_bwd", _cpu.layer_norm_bwd, LAYER_NORM_BWD, 15, {
        "rows": 10, "cols": 11, "dy_row_stride": 12, "dsummed_row_stride": 13, "x_row_stride": 14,
    }  # fmt: skip
    yield "activation_fwd", _cpu.activation_fwd, ACTIVATION_FWD, 6, {"n": 2}
    yield "activation_bwd", _cpu.activation_bwd, ACTIVATION_BWD, 7, {"n": 3}
    yield "activation_bwd_bwd", _cpu.activation_bwd_bwd, ACTIVATION_BWD_BWD, 9, {"n": 5}
    yield "max_pool_fwd", _cpu.max_pool_fwd, MAX_POOL, 9, {"outer": 3, "inner": 4}
    yield "max_pool_bwd", _cpu.max_pool_bwd, MAX_POOL_BWD, 10, {"outer": 4, "inner": 5}
    for name in ("avg_pool_fwd", "avg_pool_bwd"):
        yield name, getattr(_cpu, name), AVG_POOL, 9, {"outer": 2, "inner": 3}
    response_sizes = {"batch": 4, "channels": 5, "positions": 6, "before": 8, "after": 9}
    yield "local_response", _cpu.local_response, LOCAL_RESPONSE, 13, response_sizes
    place = torch.zeros(1, dtype=torch.float64)  # for the result of no elements
    yield "loss_sums", partial(_holding, _cpu.loss_sums, place), (*LOSS_PARTS, 0, place.data_ptr(), 0), 6, {"n": 3}
    yield (
        "loss_gradients",
        partial(_holding, _cpu.loss_gradients, place),
        (*LOSS_PARTS, place.data_ptr(), 0),
        6,
        {"n": 3},
    )
    softmaxes = {"outer": 4, "n": 5, "inner": 6, "x_outer_stride": 7, "x_step": 8}
    pointers = 0, 0, 0, place.data_ptr(), 0
    yield (
        "cross_entropy_fwd",
        partial(_holding, _cpu.cross_entropy_fwd, place),
        (*CROSS_ENTROPY, *pointers),
        12,
        softmaxes,
    )
    yield "cross_entropy_bwd", _cpu.cross_entropy_bwd, (*CROSS_ENTROPY, *(0,) * 6), 12, softmaxes
    blocks = (*CROSS_ENTROPY, 0, 0, *(place.data_ptr(),) * 6, 0)
    sizes = {"outer": 4, "n": 5, "inner": 6, "x_outer_stride": 7, "x_step": 8, "first": 14, "classes": 15}
    for step in ("begin", "sums", "losses", "gradients"):
        kernel = getattr(_cpu, f"linear_cross_entropy_{step}")
        yield f"linear_cross_entropy_{step}", partial(_holding, kernel, place), blocks, 12, sizes
    yield "loss_scale", _cpu.loss_scale, (0, 0, 1.0, 0), 3, {"count": 1}
    yield "nll_loss_fwd", partial(_holding, _cpu.nll_loss_fwd, place), (*CROSS_ENTROPY, *pointers), 12, softmaxes
    yield "nll_loss_bwd", _cpu.nll_loss_bwd, (*CROSS_ENTROPY, *(0,) * 6), 12, softmaxes
    elements = {"count": 3, "inner": 4, "n": 10}
    results = place.data_ptr(), place.data_ptr(), 0, False, 1.0
    fields = (*ELEMENTWISE_LOSS, *results)
    yield "elementwise_loss_fwd", partial(_holding, _cpu.elementwise_loss_fwd, place), fields, 14, elements
    fields = (*ELEMENTWISE_LOSS, place.data_ptr(), place.data_ptr(), 0, 0)
    yield "elementwise_loss_bwd", partial(_holding, _cpu.elementwise_loss_bwd, place), fields, 14, elements
    rows = {"first stride": 3, "second stride": 4, "third stride": 5, "n": 7, "columns": 8}
    fields = (*ROW_LOSS, *(place.data_ptr(),) * 3, 1.0)
    yield "row_loss_fwd", partial(_holding, _cpu.row_loss_fwd, place), fields, 15, rows
    fields = (*ROW_LOSS, place.data_ptr(), place.data_ptr(), 1.0, 0, 0, 0)
    yield "row_loss_bwd", partial(_holding, _cpu.row_loss_bwd, place), fields, 15, rows
    yield "normalize", _cpu.normalize, NORMALIZE, 9, {"outer": 4, "n": 5, "inner": 6}
    yield "spectral_scale", _cpu.spectral_scale, SPECTRAL_SCALE, 10, {"outer": 1, "rows": 2, "inner": 3}
    for name in ("max_unpool_fwd", "max_unpool_bwd"):
        yield name, getattr(_cpu, name), MAX_UNPOOL, 7, {"outer": 3, "inner": 4, "inputs": 5, "outputs": 6}
    yield "dropout", _cpu.dropout, DROPOUT, 6, {"n": 3}
    yield "prelu_fwd", _cpu.prelu_fwd, PRELU_FWD, 6, {"n": 3, "channels": 4, "inner": 5}
    yield "prelu_bwd", _cpu.prelu_bwd, PRELU_BWD, 9, {"n": 6, "channels": 7, "inner": 8}
    yield "rrelu", _cpu.rrelu, RRELU, 7, {"n": 4}
    yield (
        "gated_fwd",
        _cpu.gated_fwd,
        GATED_FWD,
        10,
        {"gate_row_stride": 2, "value_row_stride": 3, "rows": 5, "cols": 6},
    )
    yield "gated_bwd", _cpu.gated_bwd, GATED_BWD, 14, {
        "gate_row_stride": 3, "value_row_stride": 4, "dgate_row_stride": 7, "dvalue_row_stride": 8, "rows": 9, "cols": 10,
    }  # fmt: skip
    yield "gated_bwd_bwd", _cpu.gated_bwd_bwd, GATED_BWD_BWD, 19, {
        "ddgate_row_stride": 5, "ddvalue_row_stride": 6, "gate_row_stride": 7, "value_row_stride": 8,
        "dgate_row_stride": 12, "dvalue_row_stride": 13, "rows": 14, "cols": 15,
    }  # fmt: skip
    yield "bias_act_fwd", _cpu.bias_act_fwd, BIAS_ACT_FWD, 15, {"n": 3, "channels": 5, "inner": 6}
    yield "bias_act_bwd", _cpu.bias_act_bwd, BIAS_ACT_BWD, 17, {"n": 5, "channels": 7, "inner": 8}
    bounds = torch.zeros(1, dtype=torch.int64)  # of no bags
    for name, fields, sizes in (
        ("embedding_bag_fwd", EMBEDDING_BAG_FWD, {"n": 7, "rows": 8, "cols": 9, "bags": 10, "weight_row_stride": 11}),
        ("embedding_bag_dots", EMBEDDING_BAG_DOTS, {"n": 5, "rows": 6, "cols": 7, "bags": 8, "dy_row_stride": 9}),
    ):
        fields = replaced(fields, 2 if name == "embedding_bag_fwd" else 3, bounds.data_ptr())
        yield name, partial(_holding, getattr(_cpu, name), bounds), fields, len(fields) - 1, sizes
    yield "embedding_renorm", _cpu.embedding_renorm, EMBEDDING_RENORM, 10, {
        "n": 3, "rows": 4, "cols": 5, "weight_row_stride": 6,
    }  # fmt: skip
    yield "dropout_form", _cpu.dropout_form, DROPOUT_FORM, 12, {"batch": 4, "channels": 5, "inner": 6}
    yield "rotary", _cpu.rotary, ROTARY, 12, {"dim": 8, "half": 9}
    yield "resample", _cpu.resample, RESAMPLE, 24, {
        "in": 5, "out": 6, "taps": 7, "outer": 20, "inner": 21,
    }  # fmt: skip
    sizes = {"in_y": 14, "in_x": 15, "out_y": 16, "out_x": 17, "outer": 18, "inner": 19}
    for name in ("upfirdn2d", "upfirdn2d_workspace"):
        yield name, getattr(_cpu, name), UPFIRDN2D, 21, sizes
    sizes = {"in_y": 48, "in_x": 49, "out_y": 50, "out_x": 51, "outer": 52, "inner": 53, "channels": 54}
    for name in ("filtered_lrelu", "filtered_lrelu_workspace"):
        yield name, getattr(_cpu, name), FILTERED_LRELU, 59, sizes
    sizes = {"groups": 5, "group": 6, "rows": 7, "shares": 8, "n": 9, "extra": 10}
    for name in ("minibatch_stddev", "minibatch_stddev_workspace"):
        yield name, getattr(_cpu, name), MINIBATCH_STDDEV, 13, sizes
    yield "tensor_stats", _cpu.tensor_stats, TENSOR_STATS, 8, {"outer": 2, "groups": 3, "inner": 4}
    yield "optim_step", _cpu.optim_step, OPTIM_STEP, len(OPTIM_STEP) - 1, {}
    yield "total_norm", _cpu.total_norm, TOTAL_NORM, 3, {}
    yield "scale_tensors", _cpu.scale_tensors, SCALE_TENSORS, 3, {}
    yield "attention_workspace", _cpu.attention_workspace, ATTENTION_SHAPE, 3, {"k_len": 1, "value_dim": 2}
    yield "fma_peak", _cpu.fma_peak, (0, 0), 1, {"iterations": 0}


@pytest.mark.parametrize(
    "operation, function, fields, dtype, sizes", list(flat_problems()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_flat_problems_are_counted_and_their_sizes_not_negative(operation, function, fields, dtype, sizes):
    function(fields, 1)  # fits: what fails below fails for what is wrong in it
    last = len(fields) - 1
    with pytest.raises(TypeError, match=f"{operation}: .* ends after {last} fields, before "):
        function(fields[:-1], 1)
    with pytest.raises(TypeError, match=f"{operation}: .* has {last + 2} fields, expected {last + 1}"):
        function((*fields, 0), 1)
    for name, place in sizes.items():
        with pytest.raises(TypeError, match=f"{operation}: {name} is -1, expected 0 or more"):
            function(replaced(fields, place, -1), 1)
    for number in (-1, len(DTYPES)):
        with pytest.raises(TypeError, match=f"{operation}: dtype is {number}, expected a number from 0 to 3"):
            function(replaced(fields, dtype, number), 1)


@pytest.mark.parametrize("message, call", list(calls()), ids=[message for message, _ in calls()])
def test_what_does_not_fit_is_an_error_that_names_it(message, call):
    with pytest.raises(TypeError, match=re.escape("pyflash._cpu.") + message):
        call()


def members(header, name):
    """What the enum class of this name has, as written."""
    body = re.search(rf"enum class {name} : int32_t {{(.*?)}};", (COMMON / header).read_text(), re.DOTALL)[1]
    return [member.partition("=")[0].strip() for member in body.split(",")]


def test_python_knows_every_number_of_the_enums():
    assert set(DTYPES) == {torch.float32, torch.float64, torch.bfloat16, torch.float16}
    assert sorted(DTYPES.values()) == list(range(len(members("dtype.h", "Dtype"))))
    assert list(CELLS) == members("recurrent.h", "Cell") and list(CELLS.values()) == list(range(len(CELLS)))
    assert list(_cpu.ATTENTION_PASSES) == members("attention.h", "AttentionPass")
    assert list(_cpu.UPDATE_RULES) == members("optim.h", "UpdateRule") == list(RULES)
    assert list(_cpu.GRADIENTS) == members("optim.h", "Gradients")
    assert list(_cpu.NORM_KINDS) == members("optim.h", "NormKind")
    masks = members("attention.h", "MaskType")
    assert _cpu.MASK_TYPES == {"none": -1, "boolean": len(masks) - 2} and NO_MASK == -1
    cases = re.findall(r"case (\d+): return f\((\w+)\{.*?\}\)", (COMMON / "activations.inc").read_text())
    structs = ["".join(part.capitalize() for part in name.split("_")) for name in ACTIVATIONS]
    assert cases == [(str(number), struct) for number, struct in enumerate(structs)]
    cases = re.findall(r"case (\d+): return f\((\w+)\{.*?\}\)", (COMMON / "losses.inc").read_text())
    structs = ["".join(part.capitalize() for part in name.split("_")) for name in LOSSES]
    assert cases == [(str(number), struct) for number, struct in enumerate(structs)]
