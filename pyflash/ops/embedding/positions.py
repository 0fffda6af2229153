"""What attention is told of positions: rotary embeddings of queries and keys, and ALiBi's slopes."""

from __future__ import annotations

import torch
from torch import Tensor

from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op

# torch has no such function: its way are ten operations on each of q and k.
OPERATION = Operation("rotary_embedding", dtypes={"cpu": FLOATS, "triton": FLOATS}, second_derivative=IN_KERNELS)


def rotated(x, cos, sin, interleaved, inverse=False):
    """In torch operations; x [batch, heads, length, dim], cos and sin [batch or 1, length, half], in the type of sums."""
    half = cos.shape[-1]
    wide, passed = x[..., : 2 * half].to(cos.dtype), x[..., 2 * half :]
    cos, sin = cos.unsqueeze(1), -sin.unsqueeze(1) if inverse else sin.unsqueeze(1)
    if interleaved:
        a, b = wide.unflatten(-1, (half, 2)).unbind(-1)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = wide.split(half, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((turned.to(x.dtype), passed), -1)


_op = Op(
    "rotary(Tensor x, Tensor cos, Tensor sin, bool interleaved, bool inverse, str backend) -> Tensor",
    outputs=lambda x, *_: (torch.empty_like(x),),
    reference=lambda *args: (rotated(*args),),
    differentiable=True,
    triton="pyflash.kernels.embedding.rotary:rotary",
    cpu="pyflash.ops.embedding._cpu:rotary",
)


class _Rotary(Function):
    """Linear in x, and its transpose is the opposite rotation. is_learned: cos or sin want gradients, too."""

    @staticmethod
    def forward(x, cos, sin, interleaved, inverse, is_learned, backend):
        return _op(x, cos, sin, interleaved, inverse, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, cos, sin, ctx.interleaved, ctx.inverse, ctx.is_learned, ctx.backend = inputs
        ctx.save_for_backward(x if ctx.is_learned else None, cos, sin)

    @staticmethod
    def backward(ctx, dy):
        x, cos, sin = ctx.saved_tensors
        dx = dcos = dsin = None
        if ctx.needs_input_grad[0]:
            inverse = not ctx.inverse
            dx = apply(_Rotary, unit_stride(dy), cos, sin, ctx.interleaved, inverse, ctx.is_learned, ctx.backend)
        if ctx.is_learned:  # rare: in torch's operations
            _, dcos, dsin = vjp(
                lambda x, cos, sin: rotated(x, cos, sin, ctx.interleaved, ctx.inverse), (x, cos, sin), (dy,)
            )
        return dx, dcos, dsin, None, None, None, None


def unit_stride(x):
    """The tensor itself when the elements of its last dimension are adjacent, else a copy."""
    return x if x.is_contiguous() or x.stride(-1) == 1 else x.contiguous()


def _table(table: Tensor, x: Tensor) -> Tensor:
    """cos or sin as [batch or 1, length, half], in the type of sums."""
    width, dim = table.shape[-1], x.shape[-1]
    if 2 * width > dim:  # of both halves, which are equal
        table = table[..., : width // 2]
    table = table.to(acc_dtype(x.dtype))
    return unit_stride(table if table.dim() == 3 else table.unsqueeze(0))


def _expect_shapes(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    for name, x in (("q", q), ("k", k)):
        if x.dim() < 3:
            raise ValueError(
                f"pyflash.rotary_embedding: {name} has shape {tuple(x.shape)}, expected [..., heads, length, head_dim]"
            )
    if cos.shape != sin.shape or cos.dim() not in (2, 3):
        raise ValueError(
            f"pyflash.rotary_embedding: cos has shape {tuple(cos.shape)}, sin {tuple(sin.shape)}, expected both"
            " [length, r/2] or [batch, length, r/2], or of width r with both halves equal"
        )
    for name, x in (("q", q), ("k", k)):
        length, dim, batch = x.shape[-2], x.shape[-1], x.shape[:-3].numel()
        width = cos.shape[-1]
        if cos.shape[-2] != length or (cos.dim() == 3 and cos.shape[0] not in (1, batch)):
            raise ValueError(
                f"pyflash.rotary_embedding: cos has shape {tuple(cos.shape)}, {name} {tuple(x.shape)}, expected"
                f" {length} positions, and as the first of three dimensions {batch}; slice the tables to the positions"
            )
        if width > dim or (2 * width > dim and width % 2):
            raise ValueError(
                f"pyflash.rotary_embedding: cos is {width} wide, and {name} has head_dim {dim}, expected r/2 or, with both"
                " halves equal, an even r, for an r of at most head_dim"
            )


def rotary_embedding(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys turned by the angles of their positions, pair by pair: (a, b) becomes
    (a cos - b sin, b cos + a sin). Su et al. 2021, arXiv:2104.09864, eq. 34.

    Args:
        q, k: [..., heads, length, head_dim], each with its own number of heads, float32, float64, bfloat16 or float16, any
            strides; copied only if the elements of a head are not adjacent.
        cos, sin: [length, r/2] or [batch, length, r/2] (batch: what the leading dimensions hold together), r <= head_dim;
            what is behind the first r elements of a head passes through. Or of width r, with both halves equal, as Hugging
            Face has them: a table twice as wide would not fit into head_dim tells that it is one of those, so for
            r <= head_dim / 2 pass r/2 columns, or q and k cut to r. Any floating type.
        interleaved: a pair is two neighbours (GPT-J); otherwise element i and element i + r/2 (Llama, GPT-NeoX).
    Returns:
        (q, k), of their own types and, where they are dense, strides. Differentiable to any order, in cos and sin too.
    Raises:
        ValueError: shapes disagree.  RuntimeError: devices do.
    Numerics: computed in float32 (float64 for float64) and rounded once.
    """
    expect_tensors("rotary_embedding", q=q, k=k, cos=cos, sin=sin)
    _expect_shapes(q, k, cos, sin)
    for name, x in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        if not x.is_floating_point():
            raise TypeError(f"pyflash.rotary_embedding: {name} is {x.dtype}, expected a floating-point type")
    if not q.device == k.device == cos.device == sin.device:
        raise RuntimeError(
            f"pyflash.rotary_embedding: q is on {q.device}, k on {k.device}, cos on {cos.device}, sin on {sin.device};"
            " move them to one"
        )
    found, tables = [], {}
    is_learned = torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad)
    are_plain = is_plain(cos) and is_plain(sin)
    for x, other in ((q, k), (k, q)):
        refused = "" if are_plain and is_plain(x) else NOT_PLAIN
        backend = choose(OPERATION, x, (other, cos, sin), refused=refused)
        key = x.dtype, x.shape[-1]
        if key not in tables:  # of keys they are nearly always those of queries
            tables[key] = _table(cos, x), _table(sin, x)
        whole = x if x.dim() == 4 else x.reshape(-1, *x.shape[-3:])
        if backend is None:
            y = rotated(whole, *tables[key], interleaved)
        else:
            y = apply(_Rotary, unit_stride(whole), *tables[key], bool(interleaved), False, is_learned, backend)
        found.append(y if x.dim() == 4 else y.reshape(x.shape))
    return found[0], found[1]


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """The slope of each head's penalty on distance, as `attention(alibi_slopes=...)` takes it: 2^(-8 i / n) for head i of
    n, and, where n is no power of two, those of the next smaller power m, then every other one of 2 m.

    Args:
        num_heads: at least 1.
    Returns:
        float32 [num_heads], on the default device.
    Source: Press et al. 2022, arXiv:2108.12409, and its authors' code for numbers that are no power of two.
    """
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1:
        error = ValueError if isinstance(num_heads, int) and not isinstance(num_heads, bool) else TypeError
        raise error(f"pyflash.alibi_slopes: num_heads is {num_heads!r}, expected a positive int")
    power = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(num_heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
