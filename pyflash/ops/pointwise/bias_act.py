"""What follows a linear layer or a convolution, in one pass over memory:

    y = residual + dropout(clamp(gain activation(x + bias)))

of which any part may be absent. One pair of operators serves `bias_act`, StyleGAN's, and `bias_act_dropout_add`, that of a
Transformer block.
"""

from __future__ import annotations

import torch

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply, wanted
from pyflash.ops.core.backends import IN_KERNELS, IN_TORCH, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect, expect_tensors, is_dense, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.philox import draw_seed
from pyflash.ops.core.registry import LARGE_BYTES, Op
from pyflash.ops.pointwise.activation import CURVED, activation_fwd, gradient_of, gradients_at
from pyflash.ops.pointwise.argument import NO_ACTIVATION, ActivationArgument, Resolved, activated, resolve
from pyflash.ops.pointwise.channels import along, laid_out_as, over_channels
from pyflash.ops.pointwise.dropout import dropout, factors_of

# Zen 5, one thread, torch's time over ours at these minima: bias, GELU and residual 3 in inference, 1.1 in training, lrelu
# with its bias 6 and 1.6; from memory 6 and 4.
OPERATION, OPERATION_ADD = (
    Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": FLOATS},
        rules=minima(name, inference=1 << 18, training=1 << 20),
        sizes="(elements, are gradients needed)",
        second_derivative=f"the activation's {IN_KERNELS}, the rest {IN_TORCH}",
    )
    for name in ("bias_act", "bias_act_dropout_add")
)
ANY = -1.0  # of a clamp: none


def _scaled(x, bias, dim, of, gain, clamp):
    """clamp(gain activation(x + bias)) in torch operations."""
    u = activated(x if bias is None else x + along(bias, x, dim), of)
    u = u if gain == 1 else u * gain
    return u if clamp < 0 else u.clamp(-clamp, clamp)


def _wide(x, *tensors):
    """All in the accumulation type of x."""
    acc = acc_dtype(x.dtype)
    return [None if t is None else t.to(acc) for t in (x, *tensors)]


def _reference_fwd(x, bias, residual, seed, dim, activation, first, second, gain, clamp, dropout_p):
    wide, bias, residual = _wide(x, bias, residual)
    u = _scaled(wide, bias, dim, (activation, first, second), gain, clamp)
    u = u if seed is None else u * factors_of(x, seed, dropout_p)
    y = (u if residual is None else u + residual).to(x.dtype)
    return (y.clone() if y is x else y,)


def _gradient(dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p):
    """dx in the accumulation type; dbias is its sum over all but the channels."""
    of = activation, first, second
    d, wide, bias = _wide(dy, x, bias)
    d = d if seed is None else d * factors_of(dy, seed, dropout_p)
    d = d if gain == 1 else d * gain
    if x is not None:
        z = wide if bias is None else wide + along(bias, wide, dim)
        d = gradient_of(d, z, of)
        if clamp >= 0:
            with torch.no_grad():
                kept = (activated(z, of) * gain).abs() <= clamp
            d = torch.where(kept, d, 0)
    return d


def _reference_bwd(dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p, need_dbias):
    dx = _gradient(dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p)
    dbias = over_channels(dx, dim).clone() if need_dbias else dx.new_empty(0)
    dx = dx.to(dy.dtype)
    return dx.clone() if dx is dy else dx, dbias


def _bwd_outputs(dy, x, bias, seed, dim, *rest):
    need_dbias = rest[-1]
    return torch.empty_like(dy), dy.new_empty(dy.shape[dim] if need_dbias else 0, dtype=acc_dtype(dy.dtype))


# x, residual and dy dense, of one type and memory order; bias [channels], of dimension dim, in any type; a seed with a
# dropout_p; a negative clamp is none.
_fwd = Op(
    "bias_act_fwd(Tensor x, Tensor? bias, Tensor? residual, Tensor? seed, int dim, str activation, float first,"
    " float second, float gain, float clamp, float dropout_p, str backend) -> Tensor",
    outputs=lambda x, *_: (torch.empty_like(x),),
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.pointwise.bias_act:bias_act_fwd",
    cpu="pyflash.ops.pointwise._cpu_bias_act:bias_act_fwd",
)
# x is not needed where there is neither an activation nor a clamp; dbias comes in the accumulation type, or is empty.
_bwd = Op(
    "bias_act_bwd(Tensor dy, Tensor? x, Tensor? bias, Tensor? seed, int dim, str activation, float first, float second,"
    " float gain, float clamp, float dropout_p, bool need_dbias, str backend) -> (Tensor dx, Tensor dbias)",
    outputs=_bwd_outputs,
    reference=_reference_bwd,
    triton="pyflash.kernels.pointwise.bias_act:bias_act_bwd",
    cpu="pyflash.ops.pointwise._cpu_bias_act:bias_act_bwd",
)


class _BiasAct(Function):
    @staticmethod
    def forward(x, bias, residual, seed, dim, activation, first, second, gain, clamp, dropout_p, backend):
        return _fwd(x, bias, residual, seed, dim, activation, first, second, gain, clamp, dropout_p, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, bias, residual, seed, *ctx.rest, ctx.backend = inputs
        _, activation, *_, clamp, _ = ctx.rest
        ctx.strides, ctx.residual_dtype = output.stride(), None if residual is None else residual.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        is_read = activation or clamp >= 0
        ctx.save_for_backward(*(x, bias) if is_read else (None, None), seed)

    @staticmethod
    def backward(ctx, dy):
        (needs_x, needs_bias), needs_residual = wanted(ctx, 2), ctx.needs_input_grad[2]
        dx = dbias = None
        if needs_x or needs_bias:
            x, bias, seed = ctx.saved_tensors
            dx, dbias = apply(
                _BiasActBwd, laid_out_as(dy, ctx.strides), x, bias, seed, *ctx.rest, needs_bias, ctx.backend
            )
        return (
            dx if needs_x else None,
            dbias.to(ctx.bias_dtype) if needs_bias else None,
            dy if needs_residual else None,
            *(None,) * 9,
        )


class _BiasActBwd(Function):
    @staticmethod
    def forward(dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p, need_dbias, backend):
        return _bwd(
            dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p, need_dbias, backend
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dy, x, bias, seed, *ctx.rest, ctx.need_dbias, ctx.backend = inputs
        ctx.save_for_backward(dy, x, bias, seed)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, ddx, ddbias):
        """dx is linear in dy: the operator again, and where the activation is curved, and x or bias wants a gradient, too,
        the activation's own second derivative, which gives both."""
        dy, x, bias, seed = ctx.saved_tensors
        dim, *_ = ctx.rest
        needs_dy, needs_x, needs_bias, *_ = ctx.needs_input_grad
        if not ctx.need_dbias:
            ddbias = None
        if ddx is None and ddbias is None:
            return (None,) * 13
        spread = None if ddbias is None else along(ddbias.to(dy.dtype), dy, dim)
        given = spread.expand_as(dy) if ddx is None else ddx if spread is None else ddx + spread
        ddy = of_x = of_bias = None
        if (needs_x or needs_bias) and ctx.rest[1] in CURVED:
            ddy, dz = _second_gradients(given, dy, x, bias, seed, *ctx.rest, ctx.backend, needs_dy)
            ddy = None if ddy is None else ddy.to(dy.dtype)
            of_x = dz.to(x.dtype) if needs_x else None
            of_bias = over_channels(dz, dim).to(bias.dtype) if needs_bias else None
        elif needs_dy:
            ddy, _ = apply(_BiasActBwd, laid_out_as(given, dy.stride()), x, bias, seed, *ctx.rest, False, ctx.backend)
        return ddy, of_x, of_bias, *(None,) * 10


def _second_gradients(
    given, dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p, backend, need_ddy
):
    """What arrives at dy and at x + bias from `given`, which arrives at dx, in the accumulation type."""
    of = activation, first, second
    given, dy, z, bias = _wide(given, dy, x, bias)
    z = z if bias is None else z + along(bias, z, dim)
    given = given if seed is None else given * factors_of(dy, seed, dropout_p)  # which lies as x does
    given = given if gain == 1 else given * gain
    if clamp >= 0:
        with torch.no_grad():
            kept = (activation_fwd(z, *of, backend) * gain).abs() <= clamp
        given = torch.where(kept, given, 0)
    return gradients_at(given, dy, z, of, backend, need_ddy=need_ddy)


def _fused(operation, x, bias, residual, dim, of, gain, clamp, dropout_p):
    """The result of a kernel, or None: torch's operations are to compute it."""
    passes = (
        (bias is not None) + (residual is not None) + bool(of[0]) + (gain != 1) + (clamp >= 0) + 2 * (dropout_p > 0)
    )
    tensors = [t for t in (x, bias, residual) if t is not None]
    refused = "" if all(map(is_plain, tensors)) else NOT_PLAIN
    # Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
    needs_grad = not dropout_p and torch.is_grad_enabled() and any([t.requires_grad for t in tensors])
    # A single pass of torch's is as fast, but where large pages tell: to the rules it is a small call.
    is_worth = passes > 1 or x.numel() * x.dtype.itemsize >= LARGE_BYTES
    size = None if refused else (x.numel() if is_worth else 1, needs_grad)
    is_flat = needs_grad and bool(of[0] or clamp >= 0) and of[0] not in CURVED
    backend = choose(operation, x, (bias, residual), size=size, refused=refused, is_flat=is_flat)
    if backend is None:
        return None
    x = x if is_dense(x) else x.clone()
    seed = draw_seed(x) if dropout_p > 0 else None
    residual = None if residual is None else laid_out_as(residual, x.stride())
    bias = None if bias is None else bias.contiguous()
    return apply(_BiasAct, x, bias, residual, seed, dim, *of, gain, clamp, dropout_p, backend)


def _channel(operation, x, bias, dim, name) -> int:
    """The dimension that a bias is of, not negative; an error where it is none or does not fit."""
    if bias is None:
        return 0
    expect(
        type(dim) is int and -x.dim() <= dim < x.dim(),
        operation,
        lambda: f"dim is {dim!r}, and x has {x.dim()} dimensions",
        IndexError if type(dim) is int else TypeError,
    )
    expect(
        bias.dim() == 1 and bias.shape[0] == x.shape[dim],
        operation,
        lambda: (
            f"{name} has shape {tuple(bias.shape)}, expected ({x.shape[dim]},), a value for each place of dimension {dim}"
            f" of x {tuple(x.shape)}"
        ),
    )
    expect(
        bias.device == x.device,
        operation,
        lambda: f"{name} is on {bias.device}, x on {x.device}; move one of them",
        RuntimeError,
    )
    return dim % x.dim()


# StyleGAN's names: the row, the parameter alpha where it takes one, and the default gain.
_ROOT = 2**0.5
_ACTS: dict[str, tuple[str, float | None, float]] = {
    "linear": ("", None, 1.0),
    "relu": ("relu", None, _ROOT),
    "lrelu": ("leaky_relu", 0.2, _ROOT),
    "tanh": ("tanh", None, 1.0),
    "sigmoid": ("sigmoid", None, 1.0),
    "elu": ("elu", None, 1.0),
    "selu": ("selu", None, 1.0),
    "softplus": ("softplus", None, 1.0),
    "swish": ("silu", None, _ROOT),
}


def of_act(operation: str, act: str, alpha: float | None, gain: float | None, clamp: float | None):
    """(activation, gain, clamp) of `bias_act`'s arguments."""
    expect(
        isinstance(act, str) and act in _ACTS,
        operation,
        lambda: f"act is {act!r}, expected one of {', '.join(_ACTS)}",
    )
    name, slope, default = _ACTS[act]
    if slope is not None:
        of: Resolved = name, float(slope if alpha is None else alpha), 0.0
    else:
        of = resolve(operation, name or None)
    return of, float(default if gain is None else gain), ANY if clamp is None or clamp < 0 else float(clamp)


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """clamp(gain act(x + b)) in one pass, as StyleGAN2-ADA's and StyleGAN3's torch_utils.ops.bias_act.

    Args:
        x: any shape, any dense memory order without a copy; float32, float64, bfloat16 or float16.
        b: [x.shape[dim]], or None for no bias.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus" or "swish".
        alpha: the slope of "lrelu", 0.2 if None; the others have none.
        gain: what the activation is multiplied by; None: sqrt(2) for "relu", "lrelu" and "swish", 1 for the others.
        clamp: the largest magnitude that is left; None or a negative number for none.
        impl: accepted and ignored.
    Returns:
        like x, in its type.
    Raises:
        ValueError: no such act, or b does not fit.  IndexError: no such dimension.  TypeError: no tensor.
    Numerics: computed in float32 (float64 for float64) and rounded once. Differentiable twice; b's gradient is summed in
        double, deterministic, whatever the number of threads.
    Source: Karras et al. 2020, arXiv:2006.06676; Karras et al. 2021, arXiv:2106.12423.
    """
    expect_tensors("bias_act", ("b",), x=x, b=b)
    of, gain, clamp = of_act("bias_act", act, alpha, gain, clamp)
    dim = _channel("bias_act", x, b, dim, "b")
    if b is None and of == NO_ACTIVATION and gain == 1 and clamp < 0:
        return x
    y = _fused(OPERATION, x, b, None, dim, of, gain, clamp, 0.0)
    return _scaled(x, None if b is None else b.to(x.dtype), dim, of, gain, clamp) if y is None else y


def bias_act_dropout_add(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    activation: ActivationArgument = None,
    dropout_p: float = 0.0,
    training: bool = True,
    dim: int = -1,
) -> torch.Tensor:
    """residual + dropout(activation(x + bias)) in one pass, any part of it absent: the end of a Transformer's sublayer.

    Args:
        x: any shape, any dense memory order without a copy; float32, float64, bfloat16 or float16.
        bias: [x.shape[dim]], of any floating type.
        residual: broadcast and promoted with x.
        activation: a row of the activation table, alone or with values of its parameters, or a torch.nn module that
            computes one.
        dropout_p: probability of an element to be zeroed, in [0, 1]; the others are scaled by 1 / (1 - p).
        training: False: nothing is dropped.
        dim: the dimension of the bias.
    Returns:
        in the type of x, or of x and residual.
    Raises:
        ValueError: no such activation, dropout_p outside [0, 1], or bias does not fit.  IndexError: no such dimension.
        TypeError: no tensor.
    Numerics: computed in float32 (float64 for float64) and rounded once. The mask is that of `dropout`: never stored, the
        same on every backend and number of threads.
    """
    name = "bias_act_dropout_add"
    of = resolve(name, activation)
    expect_tensors(name, ("bias", "residual"), x=x, bias=bias, residual=residual)
    expect(0 <= dropout_p <= 1, name, lambda: f"dropout_p is {dropout_p}, expected a probability from 0 to 1")
    dropout_p = float(dropout_p) if training else 0.0
    if residual is not None:
        expect(
            residual.device == x.device,
            name,
            lambda: f"residual is on {residual.device}, x on {x.device}; move one of them",
            RuntimeError,
        )
        if residual.dtype != x.dtype:
            dtype = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(dtype), residual.to(dtype)
    dim = _channel(name, x, bias, dim, "bias") - x.dim()  # from the last: a residual may have more dimensions
    if residual is not None and residual.shape != x.shape:
        x, residual = torch.broadcast_tensors(x, residual)
    if bias is None and residual is None and of == NO_ACTIVATION and dropout_p == 0:
        return x
    y = _fused(OPERATION_ADD, x, bias, residual, dim % max(x.dim(), 1), of, 1.0, ANY, dropout_p)
    if y is not None:
        return y
    u = _scaled(x, None if bias is None else bias.to(x.dtype), dim, of, 1.0, ANY)
    u = dropout(u, dropout_p) if dropout_p > 0 else u  # ours, where it is quicker and the mask the same
    return u if residual is None else residual + u
