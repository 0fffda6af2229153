"""Dropout of whole channels (Tompson et al. 2015, arXiv:1411.4280), and alpha dropout, which keeps the mean and the variance
of what SELU gives (Klambauer et al. 2017, arXiv:1706.02515). The mask is recomputed from a seed, as dropout's."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

from pyflash.auto import pointwise as auto
from pyflash.kernels.dropout import affine, by_channel, threshold
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_dense, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.philox import draw_seed
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.dropout import words_of

_RULES = {"alpha_dropout": auto.dropout_rules, **dict.fromkeys(auto.CHANNEL_DROPOUTS, auto.channel_dropout_rules)}
OPERATION = {
    name: Operation(name, dtypes={"cpu": FLOATS, "triton": FLOATS}, rules=rules, second_derivative=IN_KERNELS)
    for name, rules in _RULES.items()
}


def _reference(x, seed, p, is_alpha, by_feature, has_shift):
    batch, channels, *_ = by_channel(x)
    kept = words_of(seed, batch * channels if by_feature else x.numel()) >= threshold(p)
    kept = kept.view(batch, channels, *(1,) * (x.dim() - 2)) if by_feature else kept.as_strided(x.shape, x.stride())
    wide = torch.zeros((), dtype=acc_dtype(x.dtype), device=x.device)
    scale, of_kept, of_dropped = affine(p, is_alpha, has_shift)
    y = x * torch.where(kept, wide + scale, wide)
    return ((y + torch.where(kept, wide + of_kept, wide + of_dropped) if of_kept or of_dropped else y).to(x.dtype),)


# x is dense; by_feature: contiguous or channels last, of two dimensions or more. has_shift: False is the derivative.
_op = Op(
    "dropout_form(Tensor x, Tensor seed, float p, bool is_alpha, bool by_feature, bool has_shift, str backend) -> Tensor",
    outputs=lambda x, *_: (torch.empty_like(x),),
    reference=_reference,
    differentiable=True,
    triton="pyflash.kernels.pointwise.dropout:dropout_form",
    cpu="pyflash.ops.pointwise._cpu_dropout:dropout_form",
)


class _DropoutForm(Function):
    @staticmethod
    def forward(x, seed, p, is_alpha, by_feature, has_shift, backend):
        return _op(x, seed, p, is_alpha, by_feature, has_shift, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, seed, ctx.p, *ctx.form, _, ctx.backend = inputs
        ctx.stride = output.stride()
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx, dy):
        if dy.stride() != ctx.stride:  # the mask is numbered in the order of y's memory
            dy = torch.empty_strided(dy.shape, ctx.stride, dtype=dy.dtype, device=dy.device).copy_(dy)
        dx = apply(_DropoutForm, dy, ctx.saved_tensors[0], ctx.p, *ctx.form, False, ctx.backend)
        return dx, None, None, None, None, None, None


def _readable(x, by_feature: bool):
    """x, or a copy that lies as the kernels know it."""
    if not by_feature or x.is_contiguous():
        return x if is_dense(x) else x.clone()
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if layout is not None and x.is_contiguous(memory_format=layout):
        return x
    if x.dim() == 3 and x.transpose(1, 2).is_contiguous():
        return x
    return x.contiguous()


def _drop(name, input, p, training, inplace, is_alpha, by_feature, is_unbatched=False, warning=""):
    """One of torch.nn.functional's forms; `warning` is torch's, which says it itself where it is called."""
    torchs = getattr(F, name)
    if p < 0.0 or p > 1.0:
        raise ValueError(f"pyflash.{name}: dropout probability has to be between 0 and 1, but got {p} as p")
    is_tensor = isinstance(input, torch.Tensor)
    if (
        not is_tensor
        or training is not True
        or p == 0.0
        or p != p
        or input.numel() == 0
        or (by_feature and input.dim() + is_unbatched < 2)
    ):
        return torchs(input, p, training, inplace)  # the input itself, or torch's error
    refused = "" if is_plain(input) else NOT_PLAIN
    if refused and not torch.is_floating_point(input):
        return torchs(input, p, training, inplace)
    backend = choose(OPERATION[name], input, refused=refused)
    if backend is None:
        return torchs(input, p, training, inplace)
    if warning:
        warnings.warn(warning, stacklevel=3)
    x = input.unsqueeze(0) if is_unbatched else input
    y = apply(
        _DropoutForm, _readable(x, by_feature), draw_seed(input), float(p), is_alpha, by_feature, is_alpha, backend
    )  # fmt: skip
    y = y.squeeze(0) if is_unbatched else y
    return input.copy_(y) if inplace else y


def _rank(input) -> int:
    return input.dim() if isinstance(input, torch.Tensor) else -1


def _of_rank(name: str, rank: int, spatial: int) -> str:
    """torch's words."""
    return (
        f"{name}: Received a {rank}-D input to {name}, which is deprecated and will result in an error in a future release."
        " To retain the behavior and silence this warning, please use dropout instead. Note that"
        f" {name} exists to provide channel-wise dropout on inputs with {spatial} spatial dimensions, a channel dimension,"
        f" and an optional batch dimension (i.e. {spatial + 1}D or {spatial + 2}D inputs)."
    )


_DROPOUT2D_OF_3D = (
    "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout behavior is desired - input is"
    " interpreted as shape (N, C, L), where C is the channel dim. This behavior will change in a future release to interpret"
    " the input as one without a batch dimension, i.e. shape (C, H, W). To maintain the 1D channel-wise dropout behavior,"
    " please switch to using dropout1d instead."
)


def dropout1d(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Zeroes whole channels of [batch, channels, length] or [channels, length] with probability p and scales the others by
    1 / (1 - p), as torch.nn.functional.dropout1d.

    Args:
        input, p, training, inplace: as `dropout`'s. A layout with channels next to each other is read as it is.
    Raises:
        ValueError: p outside [0, 1].  RuntimeError: another number of dimensions.
    Numerics: as `dropout`'s; a channel's word is that of its number, batch * channels + channel.
    """
    rank = _rank(input)
    if rank not in (-1, 2, 3) and 0 <= p <= 1:
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {rank}D input. Note that dropout1d exists to provide"
            " channel-wise dropout on inputs with 1 spatial dimension, a channel dimension, and an optional batch dimension"
            " (i.e. 2D or 3D inputs)."
        )
    return _drop("dropout1d", input, p, training, inplace, False, True, is_unbatched=rank == 2)


def dropout2d(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Zeroes whole channels of [batch, channels, height, width], as torch.nn.functional.dropout2d; see `dropout1d`. An
    input of three dimensions is taken for [batch, channels, length], with torch's warning."""
    rank = _rank(input)
    warning = _DROPOUT2D_OF_3D if rank == 3 else "" if rank == 4 else _of_rank("dropout2d", rank, 2)
    return _drop("dropout2d", input, p, training, inplace, False, True, warning=warning)


def dropout3d(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Zeroes whole channels of [batch, channels, depth, height, width] or [channels, depth, height, width], as
    torch.nn.functional.dropout3d; see `dropout1d`."""
    rank = _rank(input)
    warning = "" if rank in (4, 5) else _of_rank("dropout3d", rank, 3)
    return _drop("dropout3d", input, p, training, inplace, False, True, is_unbatched=rank != 5, warning=warning)


def alpha_dropout(input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> torch.Tensor:
    """Puts SELU's limit at minus infinity for elements with probability p, then scales and shifts all so that mean 0 and
    variance 1 stay, as torch.nn.functional.alpha_dropout; see `dropout`."""
    return _drop("alpha_dropout", input, p, training, inplace, True, False)


def feature_alpha_dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> torch.Tensor:
    """`alpha_dropout` of whole channels, as torch.nn.functional.feature_alpha_dropout."""
    return _drop("feature_alpha_dropout", input, p, training, inplace, True, True)
