"""The norms of tensors with channels in torch operations, differentiable to any order: of [batch, channels, positions], statistics
as they meet it."""

from __future__ import annotations

import torch

from pyflash.ops.pointwise.activation import derivative, derivatives_at


def per_element(units, x, groups):
    """[units] as it meets x [batch, channels, positions]."""
    if not groups:
        return units[:, None]
    batch, channels, _ = x.shape
    return units.view(batch, groups, 1, 1).expand(batch, groups, channels // groups, 1).reshape(batch, channels, 1)


def unit_mean(t, groups):
    """Of each unit of t [batch, channels, positions], as it meets t."""
    if not groups:
        return t.mean((0, 2), keepdim=True)
    means = t.reshape(t.shape[0], groups, -1).mean(2)
    return per_element(means.reshape(-1), t, groups)


def statistics(wide, groups, eps):
    """Mean, variance and 1 / deviation of each unit as they meet x."""
    mean = unit_mean(wide, groups)
    variance = unit_mean((wide - mean).square(), groups)
    return mean, variance, torch.rsqrt(variance + eps)


def per_unit(t, x, groups):
    """The reverse of `per_element`."""
    if not groups:
        return t.reshape(-1)
    batch, channels, _ = x.shape
    return t.view(batch, groups, channels // groups)[:, :, 0].reshape(-1)


def affine(xhat, residual, weight, bias):
    z = xhat if weight is None else xhat * weight[:, None]
    z = z if bias is None else z + bias[:, None]
    return z if residual is None else z + residual


def gradients(dy, wide, xhat, rstd, residual, weight, bias, groups, uses_input, activation):
    """dx, dresidual, dweight, dbias, in the accumulation type; the means make dx orthogonal to 1 and to xhat."""
    dz = dy.to(wide.dtype)
    if activation[0]:
        dz = derivative(dz, affine(xhat, residual, weight, bias), *activation)
    dxhat = dz if weight is None else dz * weight[:, None]
    if uses_input:
        dxhat = dxhat - unit_mean(dxhat, groups) - xhat * unit_mean(dxhat * xhat, groups)
    return dxhat * rstd, dz, (dz * xhat).sum((0, 2)), dz.sum((0, 2))


def second_gradients(
    ddx, ddresidual, ddweight, ddbias, dy, wide, xhat, rstd, residual, weight, bias, groups, uses_input, activation
):
    """What arrives at dy, x, residual, weight and bias from what arrives at the results of `gradients`, any of which may be
    None; in the accumulation type. csrc/cpu/norm/channel_second_rows.h has the formulas. Without a second derivative of the
    activation nothing arrives at residual and bias: None."""
    g, of_residual, dy = (None if t is None else t.to(wide.dtype) for t in (ddx, ddresidual, dy))
    factor, moved = (None if t is None else t[:, None] for t in (weight, ddweight))
    factor = torch.ones_like(rstd[..., :1]) if factor is None else factor
    moved = torch.zeros_like(xhat[0, :, :1]) if moved is None else moved
    g = torch.zeros_like(xhat) if g is None else g

    def projected(t):
        return t - unit_mean(t, groups) - xhat * unit_mean(t * xhat, groups) if uses_input else t

    q = factor * rstd * projected(g) + moved * xhat
    q = q if of_residual is None else q + of_residual
    q = q if ddbias is None else q + ddbias[:, None]
    z = affine(xhat, residual, weight, bias)
    dz = derivative(dy, z, *activation) if activation[0] else dy
    ddy, s = derivatives_at(q, dy, z, activation)
    t = moved * dz if s is None else moved * dz + factor * s
    h = factor * dz
    if uses_input:
        t = t - rstd * (g * unit_mean(h * xhat, groups) + h * unit_mean(g * xhat, groups))
        dx = rstd * (projected(t) - xhat * rstd * unit_mean(g * projected(h), groups))
    else:
        dx = rstd * t
    dweight = (dz * rstd * projected(g)).sum((0, 2))
    if s is None:
        return ddy, dx, None, dweight, None
    return ddy, dx, s, dweight + (s * xhat).sum((0, 2)), s.sum((0, 2))
