"""Adaptive instance normalisation: a scale and a shift for each channel of each sample, from a style. Huang & Belongie 2017,
arXiv:1703.06868, eq. 8; StyleGAN's (Karras et al. 2019, arXiv:1812.04948, eq. 1)."""

from __future__ import annotations

import numbers

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import shaped
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.norm.channels import channel_norm, is_dense, mixed_types
from pyflash.ops.pointwise.argument import NO_ACTIVATION

NAME = "adaptive_instance_norm"
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Zen 5, one thread, torch's time over ours, inference and training: 1.3 and 1.0 at 2^15 elements, 2.1 and 1.25 at 2^16, 4.7
# and 2.4 at 2^18; channels last 2.1 and 1.0 at 2^16, 3.3 to 5.4 and 1.15 at 2^20.
OPERATION = Operation(
    NAME,
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima(NAME, inference=65536, training=65536),
    sizes="(elements of a channel of a sample, these channels, are gradients needed)",
    second_derivative=IN_KERNELS,
)


def _size_of(training, x, scale, shift):
    if x.dim() < 3 or not all([is_plain(t) for t in (x, scale, shift)]):
        return None
    channels = x.shape[0] * x.shape[1]
    return x.numel() // max(channels, 1), channels, training


def _key_of(x, scale, shift):
    return x.shape, x.dtype, x.is_cpu, scale.shape, scale.dtype, shift.shape, shift.dtype


def _affine(xhat, scale, shift):
    ones = (1,) * (xhat.dim() - 2)
    scale, shift = (t.reshape(*t.shape, *ones) for t in (scale, shift))
    return torch.addcmul(shift.to(xhat.dtype), scale.to(xhat.dtype), xhat)


def _expect_fit(x, scale, shift, eps) -> None:
    expect_tensors(NAME, x=x, scale=scale, shift=shift)
    for name, t in (("x", x), ("scale", scale), ("shift", shift)):
        if not t.is_floating_point():
            raise RuntimeError(f"pyflash.{NAME}: {name} is {t.dtype}, expected a floating-point tensor")
        if t.device != x.device:
            raise RuntimeError(f"pyflash.{NAME}: {name} is on {t.device}, x on {x.device}; move one of them")
    if x.dim() < 3:
        raise ValueError(f"pyflash.{NAME}: x has shape {tuple(x.shape)}, expected [batch, channels, positions, ...]")
    for name, t in (("scale", scale), ("shift", shift)):
        if t.shape != x.shape[:2]:
            raise ValueError(
                f"pyflash.{NAME}: {name} has shape {tuple(t.shape)}, expected {tuple(x.shape[:2])}, [batch, channels] of x"
                f" {tuple(x.shape)}"
            )
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"pyflash.{NAME}: eps is {eps!r}, expected a float")
    if x.numel() and x.shape[2:].numel() == 1:
        raise ValueError(
            f"pyflash.{NAME}: Expected more than 1 spatial element when training, got input size {x.shape}"
        )


_refused = Refused(OPERATION, _size_of, _key_of)


def adaptive_instance_norm(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-5
) -> torch.Tensor:
    """scale (x - mean) / sqrt(var + eps) + shift, with mean and variance of each channel of each sample.

    Args:
        x: [batch, channels, ...], float32, float64, bfloat16 or float16.
        scale, shift: [batch, channels], of x's type, or both float32 beside a half type; torch serves other mixtures.
        eps: added to the variance.
    Returns:
        As x, in its memory order. Contiguous tensors take one kernel, to which samples and channels are one dimension, as a batch
        norm has it. Of channels_last ones that is done to a contiguous copy, or, where no gradients are needed, the scale and the
        shift are a second pass.
    Raises:
        ValueError: shapes do not fit, or there is one position.  RuntimeError: no floating-point numbers, or two devices.
    Numerics: as `instance_norm`.
    """
    is_torchs = all([isinstance(t, torch.Tensor) for t in (x, scale, shift)]) and _refused.holds(x, scale, shift)
    _expect_fit(x, scale, shift, eps)
    backend, training = None, False
    if x.numel() and not is_torchs:
        plain = all([is_plain(t) for t in (x, scale, shift)])
        reason = mixed_types(x, scale=scale, shift=shift) if plain else NOT_PLAIN
        training = torch.is_grad_enabled() and any([t.requires_grad for t in (x, scale, shift)])
        backend = choose(OPERATION, x, (scale, shift), _size_of(training, x, scale, shift), reason)
    if backend is None:
        return _affine(F.instance_norm(x, eps=eps) if x.numel() else x, scale, shift)
    batch, channels, *positions = x.shape
    is_last = not x.is_contiguous() and is_dense(x)
    if not is_last or training:
        flat = x.contiguous().view(1, batch * channels, *positions)
        parameters = scale.reshape(-1), shift.reshape(-1), None, None
        y, _, _ = channel_norm(flat, None, *parameters, 0, True, 0.0, eps, NO_ACTIVATION, backend)
        y = shaped(y, x.shape)
        return y.contiguous(memory_format=LAST[x.dim()]) if is_last else y
    xhat, _, _ = channel_norm(x, *(None,) * 5, channels, True, 0.0, eps, NO_ACTIVATION, backend)
    return _affine(xhat, scale, shift)
