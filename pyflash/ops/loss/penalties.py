"""Penalties of a critic's gradient: WGAN-GP's, and R1. Their derivative is one of second order, which every operation of ours
has."""

from __future__ import annotations

import torch

from pyflash.ops.core.backends import differentiated_twice
from pyflash.ops.core.checks import expect_tensors
from pyflash.ops.core.dtypes import acc_dtype


def _expect_samples(operation: str, critic, **tensors) -> None:
    if not callable(critic):
        raise TypeError(
            f"pyflash.{operation}: critic is a {type(critic).__name__}, expected something to call with samples"
        )
    expect_tensors(operation, **tensors)
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise RuntimeError(f"pyflash.{operation}: {name} is {t.dtype}, expected floating-point samples")
        if t.dim() == 0:
            raise ValueError(f"pyflash.{operation}: {name} has no dimensions, expected [batch, ...]")
    if not torch.is_grad_enabled():
        raise RuntimeError(
            f"pyflash.{operation}: gradients are off, and it is made of the critic's; call it outside of torch.no_grad()"
            " and torch.inference_mode()"
        )


def _gradient(operation: str, critic, x) -> torch.Tensor:
    """That of the sum of the critic's results at x, which has no history, as rows [batch, elements] in the accumulation type."""
    x.requires_grad_()
    with differentiated_twice():
        scores = critic(x)
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"pyflash.{operation}: critic returned a {type(scores).__name__}, expected a tensor")
    grad = None
    if scores.requires_grad:
        ones = torch.ones_like(scores)
        (grad,) = torch.autograd.grad(scores, x, ones, create_graph=True, allow_unused=True)
    if grad is None:
        raise RuntimeError(
            f"pyflash.{operation}: critic's result does not depend on its argument, or was detached from it"
        )
    return grad.reshape(len(grad), -1).to(acc_dtype(grad.dtype)) if grad.numel() else grad.new_empty(len(grad), 0)


def gradient_penalty(critic, real: torch.Tensor, fake: torch.Tensor, target: float = 1.0) -> torch.Tensor:
    """WGAN-GP's penalty: the mean over the batch of (|gradient|_2 - target)^2, the gradient being the critic's at
    u real + (1 - u) fake. Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1, without its weight.

    Args:
        critic: called once, with a tensor like `real`; any callable whose result is a tensor, of which the sum counts. A result
            for a sample must not depend on the others (no batch norm: section 4 of the paper).
        real, fake: [batch, ...] of one shape. Taken as constants: no gradient flows to them, and they are not changed.
        target: the norm that is wanted.
    Returns:
        One number, float32, or float64 of such samples, with a graph to the critic's parameters.
    Raises:
        RuntimeError: gradients are off, the critic's result does not depend on its argument, or the samples are no
            floating-point numbers.  ValueError: shapes differ.  TypeError: no tensors, or nothing to call.
    Numerics: the norm is in float32 or better, under autocast too. One u a sample, by torch.rand on real's device, in the order
        in which rand(batch, 1, ...) gives them. Where the gradient is 0 its norm's derivative is, too, as torch's.
    """
    _expect_samples("gradient_penalty", critic, real=real, fake=fake)
    if real.shape != fake.shape:
        raise ValueError(
            f"pyflash.gradient_penalty: real is {tuple(real.shape)} and fake {tuple(fake.shape)}, expected one shape"
        )
    if real.device != fake.device:
        raise RuntimeError(
            f"pyflash.gradient_penalty: real is on {real.device}, fake on {fake.device}; move one of them"
        )
    with torch.no_grad():
        u = torch.rand(len(real), *(1,) * (real.dim() - 1), device=real.device, dtype=acc_dtype(real.dtype))
        mix = (u * real + (1 - u) * fake).to(real.dtype)
    norm = torch.linalg.vector_norm(_gradient("gradient_penalty", critic, mix), dim=1)
    return (norm - target).square().mean()


def r1_penalty(critic, real: torch.Tensor) -> torch.Tensor:
    """The mean over the batch of the squared norm of the critic's gradient at real samples. Mescheder et al. 2018,
    arXiv:1801.04406, eq. 9, without gamma / 2.

    Args:
        critic, real: as in `gradient_penalty`.
    Returns, Raises: as `gradient_penalty`.
    Numerics: squares and sums in float32 or better, under autocast too.
    """
    _expect_samples("r1_penalty", critic, real=real)
    x = real.clone() if real.is_inference() else real.detach()
    return _gradient("r1_penalty", critic, x).square().sum(1).mean()
