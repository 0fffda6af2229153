"""Gated linear units: activation(gate) value, of two tensors or of the halves of one. Dauphin et al. 2016,
arXiv:1612.08083; Shazeer 2020, arXiv:2002.05202."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.kernels.gated import halves
from pyflash.ops.core.autograd import Function, apply, shaped, vjp
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect, expect_tensors, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.activation import derivatives_at, gradient_of
from pyflash.ops.pointwise.argument import ActivationArgument, activated, resolve
from pyflash.ops.pointwise.channels import channels_of, laid_out_as

# Zen 5, one thread, torch's time over ours at these minima: SwiGLU and ReGLU 1.3 in training and more in inference, which
# grows to 6 from memory; GLU, one kernel of torch's forward and three backward, 1.1 in training and 1.0 in inference, where
# from 32 MB on large pages tell.
OPERATION_GLU, OPERATION = (
    Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": FLOATS},
        rules=minima(name, inference=inference, training=training),
        sizes="(elements of the result, are gradients needed)",
        second_derivative=IN_KERNELS,
    )
    for name, inference, training in (("glu", 1 << 23, 1 << 20), ("gated_act", 1 << 18, 1 << 18))
)
_SIGMOID = ("sigmoid", 0.0, 0.0)


def _reference_fwd(gate, value, swapped, activation, first, second):
    gate, value = halves(gate, value, swapped)
    acc = acc_dtype(gate.dtype)
    y = activated(gate.to(acc), (activation, first, second)) * value.to(acc)
    return (y.to(value.dtype),)


def _gradients(dy, gate, value, activation, first, second):
    """dgate and dvalue, in the accumulation type."""
    acc, of = acc_dtype(gate.dtype), (activation, first, second)
    gate, value, dy = gate.to(acc), value.to(acc), dy.to(acc)
    return gradient_of(dy * value, gate, of), dy * activated(gate, of)


def _reference_bwd(dy, gate, value, swapped, *of):
    dgate, dvalue = _gradients(dy, *halves(gate, value, swapped), *of)
    dgate, dvalue = dgate.to(gate.dtype), dvalue.to(gate.dtype)
    if value is not None:
        return dgate, dvalue
    return torch.cat((dvalue, dgate) if swapped else (dgate, dvalue), 1), gate.new_empty(0)


def _reference_bwd_bwd(dy, gate, value, ddgate, ddvalue, swapped, *of):
    acc, is_packed = acc_dtype(gate.dtype), value is None
    if is_packed:
        ddgate, ddvalue = halves(ddgate, None, swapped)
    x, v = (t.to(acc) for t in halves(gate, value, swapped))
    g, of_value, d = (None if t is None else t.to(acc) for t in (ddgate, ddvalue, dy))
    ddy, dgate, dvalue = torch.zeros_like(d), torch.zeros_like(d), torch.zeros_like(d)
    if g is not None:
        sloped, bent = derivatives_at(g, d * v, x, of)
        ddy, dvalue = sloped * v, sloped * d
        dgate = dgate if bent is None else bent
    if of_value is not None:
        ddy = ddy + of_value * activated(x, of)
        dgate = dgate + gradient_of(of_value * d, x, of)
    ddy, dgate, dvalue = (t.to(gate.dtype) for t in (ddy, dgate, dvalue))
    if not is_packed:
        return ddy, dgate, dvalue
    return ddy, torch.cat((dvalue, dgate) if swapped else (dgate, dvalue), 1), gate.new_empty(0)


def _fwd_outputs(gate, value, *_):
    if value is None:
        return (gate.new_empty(gate.shape[0], gate.shape[1] // 2),)
    return (torch.empty_like(gate),)


def _bwd_outputs(dy, gate, value, *_):
    return torch.empty_like(gate), gate.new_empty(0) if value is None else torch.empty_like(value)


# gate and value are dense, of one memory order, or matrices with adjacent columns; or value is None and gate [rows, 2 cols],
# contiguous: both side by side, `swapped` with the value first, and the gradient is whole, too.
_fwd = Op(
    "gated_fwd(Tensor gate, Tensor? value, bool swapped, str activation, float first, float second, str backend)"
    " -> Tensor",
    outputs=_fwd_outputs,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.pointwise.gated:gated_fwd",
    cpu="pyflash.ops.pointwise._cpu_gated:gated_fwd",
)
_bwd = Op(
    "gated_bwd(Tensor dy, Tensor gate, Tensor? value, bool swapped, str activation, float first, float second,"
    " str backend) -> (Tensor dgate, Tensor dvalue)",
    outputs=_bwd_outputs,
    reference=_reference_bwd,
    triton="pyflash.kernels.pointwise.gated:gated_bwd",
    cpu="pyflash.ops.pointwise._cpu_gated:gated_bwd",
)
# What arrives at dgate and at dvalue, one of which may be None, becomes what arrives at dy, gate and value. Where value is None
# ddgate holds both, as dgate does.
_bwd_bwd = Op(
    "gated_bwd_bwd(Tensor dy, Tensor gate, Tensor? value, Tensor? ddgate, Tensor? ddvalue, bool swapped, str activation,"
    " float first, float second, str backend) -> (Tensor ddy, Tensor dgate, Tensor dvalue)",
    outputs=lambda dy, *rest: (torch.empty_like(dy), *_bwd_outputs(dy, *rest)),
    reference=_reference_bwd_bwd,
    triton="pyflash.kernels.pointwise.gated:gated_bwd_bwd",
    cpu="pyflash.ops.pointwise._cpu_gated:gated_bwd_bwd",
)


class _Gated(Function):
    @staticmethod
    def forward(gate, value, swapped, activation, first, second, backend):
        return _fwd(gate, value, swapped, activation, first, second, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        gate, value, *ctx.rest = inputs
        ctx.strides = output.stride()
        ctx.save_for_backward(gate, value)

    @staticmethod
    def backward(ctx, dy):
        gate, value = ctx.saved_tensors
        dgate, dvalue = apply(_GatedBwd, laid_out_as(dy, ctx.strides), gate, value, *ctx.rest)
        return dgate, None if value is None else dvalue, None, None, None, None, None


class _GatedBwd(Function):
    @staticmethod
    def forward(dy, gate, value, swapped, activation, first, second, backend):
        return _bwd(dy, gate, value, swapped, activation, first, second, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.swapped, activation, first, second, ctx.backend = inputs
        ctx.of = activation, first, second
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, ddgate, ddvalue):
        dy, gate, value = ctx.saved_tensors
        if ddgate is None and (value is None or ddvalue is None):
            return (None,) * 8
        # As dy lies, or side by side as gate does.
        strides = gate.stride() if value is None else dy.stride()
        arriving = (
            None if t is None else laid_out_as(t, strides) for t in (ddgate, ddvalue if value is not None else None)
        )
        found = apply(_GatedBwdBwd, dy, gate, value, *arriving, ctx.swapped, *ctx.of, ctx.backend)
        ddy, dgate, dvalue = found
        return ddy, dgate, None if value is None or ddgate is None else dvalue, *(None,) * 5


class _GatedBwdBwd(Function):
    @staticmethod
    def forward(dy, gate, value, ddgate, ddvalue, swapped, activation, first, second, backend):
        return _bwd_bwd(dy, gate, value, ddgate, ddvalue, swapped, activation, first, second, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.swapped, activation, first, second, _ = inputs
        ctx.of = activation, first, second
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        """The third derivative, in torch operations."""
        found = vjp(lambda *t: _reference_bwd_bwd(*t, ctx.swapped, *ctx.of), ctx.saved_tensors, grads)
        return *found, *(None,) * 5


def _packed(input, dim, swapped, of, backend):
    """Of the halves of `input` along `dim`, which is split where it lies."""
    if not is_dense(input):
        input = input.contiguous()
    channels, inner = channels_of(input, dim)
    order = None if input.is_contiguous() else sorted(range(input.dim()), key=lambda d: -input.stride(d))
    x = input if order is None else input.permute(order)  # contiguous
    shape = [size // 2 if d == dim else size for d, size in zip(order or range(input.dim()), x.shape)]
    cols = channels * inner
    if x.dim() == 2 and x.shape[1] == cols:
        y = apply(_Gated, x, None, swapped, *of, backend)
    else:
        y = shaped(apply(_Gated, x.reshape(input.numel() // max(cols, 1), cols), None, swapped, *of, backend), shape)
    if order is None:
        return y
    return y.permute([order.index(d) for d in range(input.dim())])


def _pair(gate, value, of, backend):
    if gate.stride() == value.stride() and is_dense(gate):
        return apply(_Gated, gate, value, False, *of, backend)
    shape, cols = gate.shape, gate.shape[-1]
    gate, value = (_rows(t, cols) for t in (gate, value))
    return shaped(apply(_Gated, gate, value, False, *of, backend), shape)


def _rows(t, cols):
    """The tensor as a matrix with adjacent columns; a copy only where they are not, or rows have no common stride."""
    rows = t.reshape(t.numel() // cols, cols)
    return rows if rows.stride(1) == 1 or cols == 1 else rows.contiguous()


def _size_of(training, input, value=None):
    if not is_plain(input) or (value is not None and not is_plain(value)):
        return None
    return input.numel() if value is not None else input.numel() // 2, training


def _key_of(input, value=None):
    return input.numel(), input.dtype, input.is_cpu, value is None or value.numel()


_refused_glu, _refused = Refused(OPERATION_GLU, _size_of, _key_of), Refused(OPERATION, _size_of, _key_of)


def _needs_gradient(*tensors) -> bool:
    return torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors])


def glu(input: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The first half along a dimension times the sigmoid of the second, as torch.nn.functional.glu.

    Args:
        input: any shape, of an even size along `dim`; float32, float64, bfloat16 or float16; other types go to torch.
    Raises:
        RuntimeError, IndexError: torch's own.
    """
    if _refused_glu.holds(input):
        return F.glu(input, dim)
    if not isinstance(input, torch.Tensor) or not input.is_floating_point() or type(dim) is not int:
        return F.glu(input, dim)
    if not -input.dim() <= dim < input.dim() or input.shape[dim] % 2 or not input.numel():
        return F.glu(input, dim)
    refused = "" if is_plain(input) else NOT_PLAIN
    size = None if refused else _size_of(_needs_gradient(input), input)
    backend = choose(OPERATION_GLU, input, size=size, refused=refused)
    if backend is None:
        return F.glu(input, dim)
    return _packed(input, dim % input.dim(), True, _SIGMOID, backend)


def gated_act(
    gate: torch.Tensor, value: torch.Tensor | None = None, activation: ActivationArgument = "silu"
) -> torch.Tensor:
    """activation(gate) value in one pass: SwiGLU with "silu", GEGLU with "gelu" or "gelu_tanh", ReGLU with "relu".

    Args:
        gate: [..., n], float32, float64, bfloat16 or float16; or without a value [..., 2 n], gate and value side by side:
            the other way round than `glu` has them.
        value: broadcast and promoted with gate; the rows of both may be parts of longer ones.
        activation: a row of the activation table, alone or with values of its parameters, a torch.nn module that computes
            one, or None: the product alone.
    Raises:
        ValueError: no such activation, or an odd last dimension of what is to be both.  TypeError: no tensor.
    Numerics: computed in float32 (float64 for float64) and rounded once.
    Source: Shazeer 2020, arXiv:2002.05202.
    """
    of = resolve("gated_act", activation)
    expect_tensors("gated_act", ("value",), gate=gate, value=value)
    if value is None:
        expect(
            gate.dim() > 0 and gate.shape[-1] % 2 == 0,
            "gated_act",
            lambda: (
                f"gate has shape {tuple(gate.shape)}, and without a value its last dimension is both, side by side:"
                " expected an even size"
            ),
        )
    if _refused.holds(gate, value):
        return _torchs(gate, value, of)
    refused = "" if is_plain(gate) and (value is None or is_plain(value)) else NOT_PLAIN
    if not refused and value is not None:
        expect(
            gate.device == value.device,
            "gated_act",
            lambda: f"gate is on {gate.device}, value on {value.device}; move one of them",
            RuntimeError,
        )
        if gate.dtype != value.dtype:
            dtype = torch.promote_types(gate.dtype, value.dtype)
            gate, value = gate.to(dtype), value.to(dtype)
        if gate.shape != value.shape:
            gate, value = torch.broadcast_tensors(gate, value)
    size = None if refused else _size_of(_needs_gradient(gate, value), gate, value)
    backend = choose(OPERATION, gate, (value,), size=size, refused=refused)
    if backend is None or not gate.numel():
        return _torchs(gate, value, of)
    if value is None:
        return _packed(gate, gate.dim() - 1, False, of, backend)
    return _pair(gate, value, of, backend)


def _torchs(gate, value, of):
    if value is None:
        gate, value = gate.chunk(2, -1)
    return activated(gate, of) * value
