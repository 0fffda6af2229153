"""Spectral norms of several weights in two launches an iteration, and a weight divided by its own.

A weight is a matrix of rows, [outer, rows, inner] in memory. Of the first kernel a program takes BLOCK_R rows of one of the
weights: s = W v, then t += s W, with the rows still in a cache. The second has a program for each weight, which adds the parts
of t and divides both by their norms. Tensors and sizes of all weights come as tuples, of which a program picks its own.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.primitives import INTERPRETED, acc_of, cast, scalar

MOST_WEIGHTS = 32  # of a launch: its arguments have 4 KB
BLOCK_R = 16


@triton.jit
def _pick(values, which):
    """A pointer of the tuple, by a number that is not known before."""
    value = values[0]
    for i in tl.static_range(1, len(values)):
        value = tl.where(which == i, values[i], value)
    return value


@triton.jit
def _pick_size(values, which):
    value = scalar(values[0], tl.int64)
    for i in tl.static_range(1, len(values)):
        value = tl.where(which == i, scalar(values[i], tl.int64), value)
    return value


@triton.jit
def _owner(blocks, at):
    """(weight, block of it) of program `at`, where weight i has blocks[i]."""
    which = scalar(0, tl.int32)
    block = at
    first = scalar(0, tl.int64)
    for i in tl.static_range(len(blocks)):
        last = first + blocks[i]
        is_here = (at >= first) & (at < last)
        which = tl.where(is_here, i, which)
        block = tl.where(is_here, (at - first).to(tl.int32), block)
        first = last
    return which, block


@triton.jit
def _tile(w_ptr, r, rows, c, cols, inner, ACC: tl.constexpr):
    """[BLOCK_R, BLOCK_C] of the matrix; 0 where there are none."""
    mask = (r < rows)[:, None] & (c < cols)[None, :]
    at = (c // inner * rows * inner + c % inner)[None, :] + (r * inner)[:, None]
    return cast(tl.load(w_ptr + at, mask=mask, other=0.0), ACC)


@launch.cached
@triton.jit
def _spectral_rows(
    weights, vs, ss, parts, blocks, rows, cols, inner,
    ITERATES: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    which, block = _owner(blocks, tl.program_id(0))
    w_ptr, v_ptr, s_ptr, part_ptr = _pick(weights, which), _pick(vs, which), _pick(ss, which), _pick(parts, which)
    rows, cols, inner = _pick_size(rows, which), _pick_size(cols, which), _pick_size(inner, which)
    r = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    sums = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for first in range(0, cols, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)
        v = cast(tl.load(v_ptr + c, mask=c < cols, other=0.0), ACC)
        sums += _tile(w_ptr, r, rows, c, cols, inner, ACC) * v[None, :]
    s = tl.sum(sums, 1)
    tl.store(s_ptr + r, s, mask=r < rows)
    if ITERATES:
        for first in range(0, cols, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C).to(tl.int64)
            t = tl.sum(_tile(w_ptr, r, rows, c, cols, inner, ACC) * s[:, None], 0)
            tl.store(part_ptr + block * cols + c, t, mask=c < cols)


@triton.jit
def _sum_of_products(a_ptr, b_ptr, n, ACC: tl.constexpr, BLOCK_C: tl.constexpr):
    sums = tl.zeros([BLOCK_C], ACC)
    for first in range(0, n, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)
        a = cast(tl.load(a_ptr + c, mask=c < n, other=0.0), ACC)
        sums += a * cast(tl.load(b_ptr + c, mask=c < n, other=0.0), ACC)
    return tl.sum(sums, 0)


@triton.jit
def _put_divided(from_ptr, to_ptr, divisor, n, BLOCK_C: tl.constexpr):
    for first in range(0, n, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)
        value = tl.load(from_ptr + c, mask=c < n, other=0.0) / divisor
        tl.store(to_ptr + c, cast(value, to_ptr.dtype.element_ty), mask=c < n)


@triton.jit
def _at_least(norm, eps):
    return tl.where(norm < eps, eps, norm)  # NaN stays


@launch.cached
@triton.jit
def _spectral_close(
    ss, ts, parts, blocks, rows, cols, next_us, next_vs, sigmas, eps: "fp64",  # noqa: F821
    ACC: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(0)
    s_ptr, t_ptr, part_ptr = _pick(ss, which), _pick(ts, which), _pick(parts, which)
    blocks, rows, cols = _pick_size(blocks, which), _pick_size(rows, which), _pick_size(cols, which)
    least = scalar(eps, ACC)
    s_norm = _at_least(tl.sqrt(_sum_of_products(s_ptr, s_ptr, rows, ACC, BLOCK_C)), least)
    _put_divided(s_ptr, _pick(next_us, which), s_norm, rows, BLOCK_C)
    squares = tl.zeros([BLOCK_C], ACC)
    for first in range(0, cols, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)
        t = tl.zeros([BLOCK_C], ACC)
        for block in range(0, blocks):
            t += tl.load(part_ptr + block * cols + c, mask=c < cols, other=0.0)
        t = t / s_norm
        tl.store(t_ptr + c, t, mask=c < cols)
        squares += t * t
    square = tl.sum(squares, 0)
    t_norm = _at_least(tl.sqrt(square), least)
    tl.debug_barrier()  # t is read by other threads than wrote it
    next_v_ptr = _pick(next_vs, which)
    for first in range(0, cols, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)
        v = tl.load(t_ptr + c, mask=c < cols, other=0.0) / t_norm
        tl.store(t_ptr + c, v, mask=c < cols)
        tl.store(next_v_ptr + c, cast(v, next_v_ptr.dtype.element_ty), mask=c < cols)
    tl.store(_pick(sigmas, which), square / t_norm)


@launch.cached
@triton.jit
def _spectral_read(us, ss, rows, sigmas, ACC: tl.constexpr, BLOCK_C: tl.constexpr):
    which = tl.program_id(0)
    sigma = _sum_of_products(_pick(us, which), _pick(ss, which), _pick_size(rows, which), ACC, BLOCK_C)
    tl.store(_pick(sigmas, which), sigma)


def _matrix(weight, dim):
    shape = weight.shape
    rows, inner = shape[dim], shape[dim + 1 :].numel()
    return rows, weight.numel() // rows, inner


def spectral_sigma(weights, us, vs, dims, iterations, eps, *outputs):
    """Fill the weights' next us, next vs and sigmas, in this order."""
    n = len(weights)
    found = zip(weights, us, vs, dims, iterations, eps, outputs[:n], outputs[n : 2 * n], outputs[2 * n :])
    together = {}
    for weight, u, v, dim, steps, least, *to in found:
        together.setdefault((steps, least), []).append((weight, u, v, _matrix(weight, dim), *to))
    for (steps, least), layers in together.items():
        for first in range(0, n, MOST_WEIGHTS):
            _spectral_sigma(layers[first : first + MOST_WEIGHTS], steps, least)


def _spectral_sigma(layers, steps, eps):
    if not layers:
        return
    weights, us, vs, sizes, next_us, next_vs, sigmas = zip(*layers)
    rows, cols, inner = zip(*sizes)
    acc, like = acc_of(weights[0]), sigmas[0]
    blocks = tuple(launch.cdiv(r, BLOCK_R) for r in rows)
    ss = tuple(like.new_empty(r) for r in rows)
    block_c = 4096 if INTERPRETED.value else 256

    def multiply(vs, parts):
        _spectral_rows[(sum(blocks),)](
            weights,
            vs,
            ss,
            parts,
            blocks,
            rows,
            cols,
            inner,
            ITERATES=steps > 0,
            ACC=acc,
            BLOCK_R=BLOCK_R,
            BLOCK_C=block_c,
        )

    if not steps:
        multiply(vs, ss)
        _spectral_read[(len(layers),)](us, ss, rows, sigmas, ACC=acc, BLOCK_C=block_c)
        for source, to in (*zip(us, next_us), *zip(vs, next_vs)):
            to.copy_(source)
        return
    ts = tuple(like.new_empty(c) for c in cols)
    parts = tuple(like.new_empty(b * c) for b, c in zip(blocks, cols))
    for step in range(steps):
        multiply(ts if step else vs, parts)
        _spectral_close[(len(layers),)](
            ss, ts, parts, blocks, rows, cols, next_us, next_vs, sigmas, eps, ACC=acc, BLOCK_C=block_c
        )


@launch.cached
@triton.jit
def _divided(w_ptr, sigma_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sigma = tl.load(sigma_ptr)
    y = cast(tl.load(w_ptr + at, mask=at < n), sigma.dtype) / sigma
    tl.store(y_ptr + at, cast(y, y_ptr.dtype.element_ty), mask=at < n)


@launch.cached
@triton.jit
def _scale_dots(dy_ptr, w_ptr, part_ptr, n, ACC: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """dy . weight of STEPS * BLOCK elements."""
    sums = tl.zeros([BLOCK], ACC)
    for step in range(STEPS):
        at = (tl.program_id(0).to(tl.int64) * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        dy = cast(tl.load(dy_ptr + at, mask=at < n, other=0.0), ACC)
        sums += dy * cast(tl.load(w_ptr + at, mask=at < n, other=0.0), ACC)
    tl.store(part_ptr + tl.program_id(0), tl.sum(sums, 0))


@launch.cached
@triton.jit
def _scale_bwd(
    dy_ptr, u_ptr, v_ptr, sigma_ptr, part_ptr, dw_ptr, n, parts, rows, inner, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sums = tl.zeros([BLOCK], ACC)
    for first in range(0, parts, BLOCK):
        at = first + tl.arange(0, BLOCK)
        sums += tl.load(part_ptr + at, mask=at < parts, other=0.0)
    sigma = tl.load(sigma_ptr)
    factor = tl.sum(sums, 0) / sigma / sigma
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    segment = at // inner
    u = cast(tl.load(u_ptr + segment % rows, mask=mask, other=0.0), ACC)
    v = cast(tl.load(v_ptr + segment // rows * inner + at % inner, mask=mask, other=0.0), ACC)
    dw = cast(tl.load(dy_ptr + at, mask=mask, other=0.0), ACC) / sigma - factor * u * v
    tl.store(dw_ptr + at, cast(dw, dw_ptr.dtype.element_ty), mask=mask)


def _block():
    return 16384 if INTERPRETED.value else 1024


def spectral_scale_fwd(weight, u, v, sigma, dim, y):
    """Fill y, like weight, with weight / sigma."""
    n = weight.numel()
    _divided[(launch.cdiv(n, _block()),)](weight, sigma, y, n, BLOCK=_block())


def spectral_scale_bwd(dy, weight, u, v, sigma, dim, dweight):
    """Fill dweight with dy / sigma - (dy . weight) / sigma^2 u v^T."""
    n, acc, steps = weight.numel(), acc_of(weight), 16
    rows, _, inner = _matrix(weight, dim)
    count = launch.cdiv(n, steps * _block())
    parts = torch.empty(count, dtype=sigma.dtype, device=sigma.device)
    _scale_dots[(count,)](dy, weight, parts, n, ACC=acc, BLOCK=_block(), STEPS=steps)
    _scale_bwd[(launch.cdiv(n, _block()),)](
        dy, u, v, sigma, parts, dweight, n, count, rows, inner, ACC=acc, BLOCK=_block()
    )
