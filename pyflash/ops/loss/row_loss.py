"""Losses of rows of two or three tensors, which are compared by sums over the columns: cosines, and distances. One pass makes the
sums and the losses of them, one the gradients; what stands between, torch's differences, products and norms, is never stored."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.auto.loss import elementwise_rules
from pyflash.ops.core.autograd import Function, apply, leaf, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.loss.arguments import SIZES, result_dtype

SUMS = 3  # of a row, as csrc/common/row_loss.h says them


def _losses(a, b, c, target, loss, margin, eps, power, is_swapped):
    """Of each row, by torch."""
    if loss == "cosine_embedding":
        return F.cosine_embedding_loss(a, b, target, margin, reduction="none")
    return F.triplet_margin_loss(a, b, c, margin, p=power, eps=eps, swap=is_swapped, reduction="none")


def _reference(a, b, c, target, *options):
    *options, reduction, divisor, dtype = options
    wide = (t if t is None else t.to(acc_dtype(a.dtype)) for t in (a, b, c, target))
    losses = _losses(*wide, *options)
    return (losses if reduction == "none" else losses.sum() / divisor).to(dtype)


def _sums(a, b, c, loss, eps, power):
    if loss == "cosine_embedding":
        pairs = [a * b, a * a, b * b]
    else:
        pairs = [(x - y + eps).abs() ** power for x, y in ((a, b), (a, c), (b, c))]
    return torch.stack([t.sum(1) for t in pairs], 1)


def _reference_fwd(a, b, c, target, loss, margin, eps, power, is_swapped, *options):
    y = _reference(a, b, c, target, loss, margin, eps, power, is_swapped, *options)
    sums = _sums(*(t if t is None else t.double() for t in (a, b, c)), loss, eps, power)
    if loss == "triplet_margin" and not is_swapped:
        sums = torch.cat([sums[:, :2], a.new_zeros(len(a), 1, dtype=torch.float64)], 1)
    return y, sums


def _outputs(a, b, c, target, loss, margin, eps, power, is_swapped, reduction, divisor, dtype):
    y = a.new_empty(a.shape[:1] if reduction == "none" else (), dtype=dtype)
    return y, a.new_empty(a.shape[0], SUMS, dtype=torch.float64)


def _outputs_bwd(dloss, a, b, c, target, sums, *options):
    return tuple(
        torch.empty_like(a, memory_format=torch.contiguous_format) if need else a.new_empty(0) for need in options[-3:]
    )


def _gradients(dloss, tensors, target, *options):
    """Of the tensors, None of what requires none."""
    dtype = acc_dtype(tensors[0].dtype)
    return vjp(lambda *tensors: _reference(*tensors, target, *options, dtype), tensors, (dloss.to(dtype),))


def _reference_bwd(dloss, a, b, c, target, sums, *options):
    *options, need_a, need_b, need_c = options
    needs = need_a, need_b, need_c
    inputs = [t if t is None else leaf(t) if need else t.detach() for t, need in zip((a, b, c), needs)]
    found = _gradients(dloss, inputs, target, *options)
    return tuple(g.contiguous() if need else a.new_empty(0) for g, need in zip(found, needs))


# a, b, c [rows, columns] of one shape and type, columns adjacent; target [rows] likewise, contiguous. cosine_embedding has no c,
# triplet_margin (a: anchor, b: positive, c: negative) no target. reduction: "none", or "sum", over which `divisor` stands; dtype
# that of y.
_fwd = Op(
    "row_loss_fwd(Tensor a, Tensor b, Tensor? c, Tensor? target, str loss, float margin, float eps, int power, bool is_swapped,"
    " str reduction, float divisor, ScalarType dtype, str backend) -> (Tensor y, Tensor sums)",
    outputs=_outputs,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.loss.row_loss:row_loss_fwd",
    cpu="pyflash.ops.loss._cpu_row_loss:row_loss_fwd",
)
# dloss like y; gradients contiguous, what is not needed is empty.
_bwd = Op(
    "row_loss_bwd(Tensor dloss, Tensor a, Tensor b, Tensor? c, Tensor? target, Tensor sums, str loss, float margin, float eps,"
    " int power, bool is_swapped, str reduction, float divisor, bool need_a, bool need_b, bool need_c, str backend)"
    " -> (Tensor da, Tensor db, Tensor dc)",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.loss.row_loss:row_loss_bwd",
    cpu="pyflash.ops.loss._cpu_row_loss:row_loss_bwd",
)


class _RowLoss(Function):
    @staticmethod
    def forward(a, b, c, target, *options):
        return _fwd(a, b, c, target, *options)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, loss, margin, eps, power, is_swapped, reduction, divisor, _, ctx.backend = inputs
        ctx.options = loss, margin, eps, power, is_swapped, reduction, divisor
        ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(*tensors, outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dloss, _):
        if dloss is None:
            return (None,) * 13
        needs = ctx.needs_input_grad[:3]
        grads = apply(_RowLossBwd, dloss, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend)
        return *(grad if need else None for grad, need in zip(grads, needs)), *(None,) * 10


class _RowLossBwd(Function):
    @staticmethod
    def forward(dloss, *args):
        return _bwd(dloss.contiguous(), *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dloss, a, b, c, target, _, *options, need_a, need_b, need_c, _ = inputs
        ctx.options, ctx.needs = options, (need_a, need_b, need_c)
        ctx.mark_non_differentiable(*(t for t, need in zip(outputs, ctx.needs) if not need))
        ctx.save_for_backward(dloss, a, b, c, target)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *dds):
        dloss, *tensors, target = ctx.saved_tensors
        dds = [dd if need else None for dd, need in zip(dds, ctx.needs)]

        def gradients(dloss, *tensors):
            inputs = [t if t is None else leaf(t) if need else t.detach() for t, need in zip(tensors, ctx.needs)]
            found = _gradients(dloss, inputs, target, *ctx.options)
            return [dloss.new_empty(0) if g is None else g for g in found]

        return *vjp(gradients, (dloss, *tensors), dds), *(None,) * 13


# ---- what the functions share ----


def operation(name: str) -> tuple[Operation, Refused]:
    """Of a function, and its calls that `auto` leaves to torch."""
    made = Operation(name, dtypes={"cpu": FLOATS, "triton": FLOATS}, rules=elementwise_rules(name), sizes=SIZES)
    return made, Refused(made, _size_of)


def _size_of(training, input, *_):
    return (input.numel(), training) if is_plain(input) else None


def _unserved(tensors: dict[str, torch.Tensor]) -> str:
    (first, input), *_ = tensors.items()
    wide = result_dtype(input)
    for name, t in tensors.items():
        if not is_plain(t):
            return NOT_PLAIN
        if t.dtype not in (input.dtype, wide):
            return f"{name} is {t.dtype}, {first} {input.dtype}"
        if t.dim() and name != "target" and t.shape[-1] != input.shape[-1]:
            return f"{name} has {t.shape[-1]} columns, {first} {input.shape[-1]}"
    return ""


def row_loss(
    served: Operation, tensors: dict[str, torch.Tensor], shape, loss: str, reduction: str, torchs, *, margin, eps=0.0, power=2,
    is_swapped=False, refused="",
) -> torch.Tensor:  # fmt: skip
    """The loss of the rows of these tensors, or torch's.

    Args:
        served: whose call it is.
        tensors: two or three, by the names of the function's arguments, and with two a target of fewer dimensions.
        shape: that of the losses, to which all are broadcast.
        reduction: "none", "mean" or "sum".
        torchs: () -> torch's own.
        refused: why no kernel takes these arguments, when that is so.
    """
    input, *others = tensors.values()
    training = torch.is_grad_enabled() and any([t.requires_grad for t in tensors.values()])
    backend = choose(served, input, others, _size_of(training, input), refused or _unserved(tensors))
    if backend is None:
        return torchs()
    dtype, columns = result_dtype(input), input.shape[-1]
    if any([t.dtype != input.dtype for t in others]):  # under autocast, some of them float32
        tensors = {name: t.to(dtype) for name, t in tensors.items()}
    rows = [_rows(t, shape, columns) for name, t in tensors.items() if name != "target"]
    rows += [None] * (3 - len(rows))
    target = tensors.get("target")
    if target is not None:
        target = target.detach().expand(shape).reshape(-1).contiguous()
    divisor = float(rows[0].shape[0]) if reduction == "mean" else 1.0
    options = float(margin), float(eps), power, is_swapped, "none" if reduction == "none" else "sum", divisor
    y = apply(_RowLoss, *rows, target, loss, *options, dtype, backend)[0]
    return y.view(shape) if reduction == "none" else y


def _rows(t, shape, columns):
    """[rows, columns], the columns adjacent."""
    if t.shape[:-1] != shape:
        t = t.expand(*shape, columns)
    t = t if t.dim() == 2 else t.reshape(shape.numel(), columns)
    return t if columns < 2 or t.stride(1) == 1 else t.contiguous()
