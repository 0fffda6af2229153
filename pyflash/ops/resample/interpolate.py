"""Interpolation: torch.nn.functional.interpolate. Keys 1981 (bicubic); Lanczos' filter as in Duchon 1979."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pyflash.auto.resample import interpolate_rules
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.layouts import dense, empty, is_channels_last
from pyflash.ops.core.registry import Op
from pyflash.ops.pool.avg_pool import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from pyflash.ops.resample.tables import FILTERS, LARGEST

OPERATION = Operation(
    "interpolate",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=interpolate_rules,
    sizes="(elements of the larger of input and output, kind of image, are gradients needed)",
    notes=dict.fromkeys(("cpu", "triton"), 'mode="area" is adaptive average pooling, and counted as that'),
    second_derivative=IN_KERNELS,
)

NEAREST = ("nearest", "nearest-exact")
AREA = {3: adaptive_avg_pool1d, 4: adaptive_avg_pool2d, 5: adaptive_avg_pool3d}
MODES = {3: ("linear",), 4: ("bilinear", "bicubic", "lanczos"), 5: ("trilinear",)}  # of an input of so many dimensions


def _aten(mode: str, dims: int, antialias: bool, backward: bool):
    """torch's operator."""
    name = {"nearest": "upsample_nearest", "nearest-exact": "_upsample_nearest_exact"}.get(mode, f"upsample_{mode}")
    name = f"{'_' * antialias}{name}{dims}d{'_aa' * antialias}{'_backward' * backward}"
    return getattr(torch.ops.aten, name).default


def _reference(x, sizes, scales, mode, align_corners, antialias, transposed, channels_last):
    shape = ([*x.shape[2:]], [*x.shape[:2], *sizes]) if transposed else ([*sizes],)
    corners = () if mode in NEAREST else (align_corners,)
    function = _aten(mode, len(sizes), antialias, transposed)
    return (function(x, *shape, *corners, *(scale or None for scale in scales)),)


def _outputs(x, sizes, scales, mode, align_corners, antialias, transposed, channels_last):
    return (empty(x, (*x.shape[:2], *sizes), channels_last),)


# Images of so many sizes, from x; transposed: the gradient of that, where x is the gradient of the result and `sizes`
# those of what was resized. x and the result are dense, as channels_last says; a scale of 0 was not given.
_interpolate = Op(
    "interpolate(Tensor x, SymInt[] sizes, float[] scales, str mode, bool align_corners, bool antialias, bool transposed,"
    " bool channels_last, str backend) -> Tensor",
    outputs=_outputs,
    reference=_reference,
    differentiable=True,
    triton="pyflash.ops.resample._triton:interpolate",
    cpu="pyflash.ops.resample._cpu:interpolate",
)


class _Interpolate(Function):
    """Linear in x: its derivative is the transpose, and that one's the operation again."""

    @staticmethod
    def forward(x, sizes, scales, mode, align_corners, antialias, transposed, channels_last, backend):
        return _interpolate(x, sizes, scales, mode, align_corners, antialias, transposed, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, *ctx.form, ctx.transposed, ctx.channels_last, ctx.backend = inputs
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx, dy):
        dy, sizes = dense(dy, ctx.channels_last), [*ctx.shape[2:]]
        dx = apply(_Interpolate, dy, sizes, *ctx.form, not ctx.transposed, ctx.channels_last, ctx.backend)
        return dx, *(None,) * 8


def _sizes(input, size, scale_factor, recompute_scale_factor):
    """(sizes of the result, scales or zeros), or None where torch has another way or an error."""
    dims, given = input.dim() - 2, size if scale_factor is None else scale_factor
    if (size is None) == (scale_factor is None) or (size is not None and recompute_scale_factor):
        return None
    given = [*given] if isinstance(given, (list, tuple)) else [given] * dims
    if len(given) != dims:
        return None
    if size is not None:
        is_fit = all(isinstance(n, (int, torch.SymInt)) for n in given)
        return (given, [0.0] * dims) if is_fit else None
    if not all(isinstance(f, (int, float, torch.SymFloat)) for f in given):
        return None
    if not torch.compiler.is_compiling() and not all(map(math.isfinite, given)):
        return None
    sizes = [torch.sym_int(n * float(f)) for n, f in zip(input.shape[2:], given)]
    return sizes, [0.0] * dims if recompute_scale_factor else [float(f) for f in given]


def _is_fit(input, sizes, mode, align_corners, antialias) -> bool:
    """Does torch resize `input` so?"""
    if mode in NEAREST:
        if align_corners is not None or antialias:
            return False
    elif mode not in MODES[input.dim()] or (antialias and mode not in FILTERS):
        return False
    elif mode == "lanczos" and (
        not antialias or align_corners or not hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
    ):
        return False
    return all(n > 0 for n in (*input.shape[1:], *sizes))


_GIVEN = int, float, tuple, type(None)


def _key_of(input, size, scale_factor, mode):
    size = tuple(size) if isinstance(size, list) else size
    scale_factor = tuple(scale_factor) if isinstance(scale_factor, list) else scale_factor
    if not (isinstance(size, _GIVEN) and isinstance(scale_factor, _GIVEN)):
        raise AttributeError  # torch's to refuse, and nothing to remember
    return input.shape, input.stride(), input.dtype, input.is_cpu, mode in NEAREST, size, scale_factor


def _size_of(training, input, size, scale_factor, mode):
    if not is_plain(input) or input.dim() not in MODES:
        return None
    found = _sizes(input, size, scale_factor, None)
    return None if found is None else _work(input, found[0], mode, is_channels_last(input), training)


def _work(input, sizes, mode, channels_last, training):
    kind = "" if not channels_last else "nearest channels_last" if mode in NEAREST else "channels_last"
    return max(input.numel(), math.prod(input.shape[:2]) * math.prod(sizes)), kind, training


_refused = Refused(OPERATION, _size_of, _key_of)


def interpolate(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> torch.Tensor:
    """Resizes the last one, two or three dimensions, as torch.nn.functional.interpolate.

    Args:
        input: [batch, channels, width], [.., height, width] or [.., depth, height, width], float32, float64, bfloat16 or
            float16; a result of four or five dimensions is channels last where the input is.
        size, scale_factor: of the result, one of the two; a number for all dimensions, or one each.
        mode: "nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", and with antialias "lanczos".
            "area" is adaptive average pooling, and torch's.
        align_corners: the centres of the corners of input and output coincide, not their edges.
        recompute_scale_factor: the scale is computed again from the sizes, which are whole numbers.
        antialias: "bilinear", "bicubic" and "lanczos" in two dimensions; the filter grows with what is made smaller.
    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError: torch's own.
    Numerics: coordinates and weights in float32 (float64 for float64) as torch computes them, sums in the same; rounded
        once. The gradient, too, is a sum of its own for each place: deterministic.
    """
    if _refused.holds(input, size, scale_factor, mode):
        return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    sizes = None
    if isinstance(input, torch.Tensor) and input.dim() in MODES:
        sizes = _sizes(input, size, scale_factor, recompute_scale_factor)
    if mode == "area" and sizes is not None and align_corners is None and not antialias:
        return AREA[input.dim()](input, sizes[0])  # its own words, and its own rules
    if sizes is None or not _is_fit(input, sizes[0], mode, align_corners, antialias):
        # torch's error, or torch.fx's record of the call
        return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    sizes, scales = sizes
    refused = "" if is_plain(input) else NOT_PLAIN
    if not refused and max(*input.shape[2:], *sizes) > LARGEST:
        refused = f"a dimension is longer than {LARGEST}"
    channels_last = not refused and is_channels_last(input)
    training = torch.is_grad_enabled() and input.requires_grad
    work = None if refused else _work(input, sizes, mode, channels_last, training)
    backend = choose(OPERATION, input, size=work, refused=refused)
    if backend is None:
        return F.interpolate(input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    return apply(
        _Interpolate, dense(input, channels_last), sizes, scales, mode, bool(align_corners), antialias, False,
        channels_last, backend,
    )  # fmt: skip


def _deprecated(name: str) -> None:
    warnings.warn(f"`nn.functional.{name}` is deprecated. Use `nn.functional.interpolate` instead.", stacklevel=3)


def upsample(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> torch.Tensor:
    """`interpolate`, under the name that torch deprecates."""
    _deprecated("upsample")
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
) -> torch.Tensor:
    """`interpolate` with mode="nearest", under the name that torch deprecates."""
    _deprecated("upsample_nearest")
    return interpolate(input, size, scale_factor, mode="nearest")


def upsample_bilinear(
    input: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
) -> torch.Tensor:
    """`interpolate` with mode="bilinear" and align_corners=True, under the name that torch deprecates."""
    _deprecated("upsample_bilinear")
    return interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)
