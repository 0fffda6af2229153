"""Attention of sequences packed one after another, without padding. Dao 2023, arXiv:2307.08691."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyflash.kernels.attention.options import OF_SEQUENCES, Options
from pyflash.ops.attention import flops, reference
from pyflash.ops.attention.shapes import check_alike, check_integers, default_scale, unserved, window
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import expect, expect_tensors, readable, sequence_offsets
from pyflash.ops.core.choice import choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, HALVES, acc_dtype, cast_by_autocast
from pyflash.ops.core.philox import seed_for
from pyflash.ops.core.registry import Op

DTYPES = {"cpu": FLOATS, "triton": ALL_BUT_FLOAT64, "cuda": HALVES}
OPERATION = Operation("attention_varlen", dtypes=DTYPES)  # torch has no function of its own for every device

_SCALARS = f"SymInt max_seqlen_q, SymInt max_seqlen_k, {OF_SEQUENCES}"


# ---- the reference --------------------------------------------------------------------------------------------------
def reference_fwd(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, max_seqlen_q, max_seqlen_k, *scalars):
    """`attention`'s reference, sequence by sequence; reads the offsets, on whatever device they are."""
    options = Options.from_sequences(*scalars)
    of_q = sequence_offsets("attention_varlen", "cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
    of_k = sequence_offsets("attention_varlen", "cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
    heads = q.shape[1]
    rest = q.shape[0] - of_q[-1]  # tokens of no sequence
    outs = [q.new_zeros(rest, heads, v.shape[2])]
    lses = [q.new_full((heads, rest), -torch.inf, dtype=acc_dtype(q.dtype))]
    for b in reversed(range(len(of_q) - 1)):
        one_q = q[of_q[b] : of_q[b + 1]].transpose(0, 1)[None]
        one_k, one_v = (x[of_k[b] : of_k[b + 1]].transpose(0, 1)[None] for x in (k, v))
        slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b]
        diagonal = one_k.shape[2] - one_q.shape[2] if options.diagonal is None else 0
        own = options._replace(diagonal=diagonal)
        out, lse = reference.attention_fwd(one_q, one_k, one_v, None, slopes, seed, own, first_head=b * heads)
        outs.append(out[0].transpose(0, 1))
        lses.append(lse[0])
    return torch.cat(outs[::-1]), torch.cat(lses[::-1], 1)


def reference_bwd(dout, dlse, q, k, v, out, lse, *rest):
    return reference.gradients(lambda q, k, v: reference_fwd(q, k, v, *rest), (q, k, v), (dout, dlse))


# ---- the operators --------------------------------------------------------------------------------------------------
def _fwd_outputs(q, k, v, *_):
    tokens, heads, _ = q.shape
    return q.new_empty(tokens, heads, v.shape[2]), q.new_empty(heads, tokens, dtype=acc_dtype(q.dtype))


def _bwd_outputs(dout, dlse, q, k, v, *_):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


_fwd = Op(
    "attention_varlen_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "Tensor? alibi_slopes, Tensor? seed, " + _SCALARS + ", str backend) -> (Tensor out, Tensor lse)",
    outputs=_fwd_outputs,
    reference=reference_fwd,
    differentiable=True,
    flops=flops.varlen_fwd,
    triton="pyflash.kernels.attention.dense:attention_varlen_fwd",
    cuda="pyflash.ops.attention._cuda:attention_varlen_fwd",
    cpu="pyflash.ops.attention._cpu_packed:attention_varlen_fwd",
)
_bwd = Op(
    "attention_varlen_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? alibi_slopes, Tensor? seed, "
    + _SCALARS
    + ", str backend) -> (Tensor dq, Tensor dk, Tensor dv)",
    outputs=_bwd_outputs,
    reference=reference_bwd,
    flops=flops.varlen_bwd,
    triton="pyflash.kernels.attention.dense:attention_varlen_bwd",
    cuda="pyflash.ops.attention._cuda:attention_varlen_bwd",
    cpu="pyflash.ops.attention._cpu_packed:attention_varlen_bwd",
)


class _Varlen(Function):
    @staticmethod
    def forward(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, scalars, backend):
        return _fwd(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *scalars, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.scalars, ctx.backend = inputs
        ctx.save_for_backward(*tensors, *outputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, *others, out, lse = ctx.saved_tensors
        if dout is None and dlse is None:
            return (None,) * 9
        if dout is None:
            dout = torch.zeros_like(out)
        gradients = apply(_VarlenBwd, dout, dlse, q, k, v, out, lse, *others, ctx.scalars, ctx.backend)
        return *gradients, None, None, None, None, None, None


class _VarlenBwd(Function):
    """`out` and `lse` are functions of the other inputs: the second derivative computes them again."""

    @staticmethod
    def forward(dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, scalars, backend):
        return _bwd(dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *scalars, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dout, dlse, q, k, v, _, _, *others, ctx.scalars, ctx.backend = inputs
        ctx.save_for_backward(dout, dlse, q, k, v, *others)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        *inputs, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed = ctx.saved_tensors

        def backward(dout, dlse, q, k, v):
            return reference_bwd(
                dout, dlse, q, k, v, None, None, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, *ctx.scalars
            )

        return *vjp(backward, inputs, grads), *(None,) * 8


# ---- public ---------------------------------------------------------------------------------------------------------
def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    causal_align: str = "top_left",
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
    seed: Tensor | None = None,
) -> Any:  # fmt: skip
    """`attention` of each of several sequences, packed one after another along the first dimension.

    Args:
        q: [total_q, heads, head_dim], any strides. float32, float64, bfloat16 or float16.
        k, v: [total_k, kv_heads, head_dim or Ev]; kv_heads divides heads, whose groups share them.
        cu_seqlens_q, cu_seqlens_k: int32 or int64 [batch + 1], where each sequence starts and the last one ends. Checked
            on the CPU; on another device never read by the host (the kernels clamp them to the tokens there are; with
            PYFLASH_CHECK=1 they are checked) but for the `torch` backend, which must.
        max_seqlen_q, max_seqlen_k: at least as long as the longest sequence.
        dropout_p, is_causal, scale, window_size, softcap: as in `attention`.
        causal_align: corner of each sequence's own scores where the diagonal starts, as in `attention`.
        alibi_slopes: [heads] or [batch, heads].
        return_lse: also return lse.
        seed: int64, one element: where the dropout mask comes from. Default: drawn from torch's generator.
    Returns:
        out [total_q, heads, Ev]; with `return_lse` also lse [heads, total_q] as `attention` gives it. Tokens after the
        last sequence belong to none: out 0, lse -inf.
    Raises:
        ValueError: shapes disagree, or offsets that do not ascend from 0 to at most total_q (total_k) in steps of at
        most max_seqlen. RuntimeError: dtypes or devices differ.
    Numerics: as `attention`; each sequence attends as if alone. Dropout: the Philox counter of key j of row i of head h
        of sequence b is (j // 4, i, b * heads + h, 0) and its word j % 4, with i and j counted within the sequence: the
        mask that `attention` has for the same sequences padded to [batch, heads, ...].
    """
    name = "attention_varlen"
    lengths = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    expect_tensors(name, ("alibi_slopes",), q=q, k=k, v=v, **lengths, alibi_slopes=alibi_slopes)
    q, k, v = cast_by_autocast((q, k, v))
    expect(
        q.dim() == k.dim() == v.dim() == 3, name,
        lambda: f"q, k, v have {q.dim()}, {k.dim()}, {v.dim()} dimensions, expected 3: [tokens, heads, head_dim]",
    )  # fmt: skip
    for argument, cu_seqlens in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_integers(name, argument, cu_seqlens, q)
    expect(
        cu_seqlens_q.shape == cu_seqlens_k.shape and cu_seqlens_q.shape[0] > 0, name,
        lambda: f"cu_seqlens_q and cu_seqlens_k have {len(cu_seqlens_q)} and {len(cu_seqlens_k)} elements, expected "
        "batch + 1 each",
    )  # fmt: skip
    heads = q.shape[1]
    check_alike(name, q, k, v, "qkv", ((heads,), (cu_seqlens_q.shape[0] - 1, heads)), alibi_slopes, softcap)
    expect(0 <= dropout_p <= 1, name, lambda: f"dropout_p is {dropout_p}, expected a probability between 0 and 1")
    expect(
        causal_align in ("top_left", "bottom_right"), name,
        lambda: f"causal_align is {causal_align!r}, expected 'top_left' or 'bottom_right'",
    )  # fmt: skip
    if readable(cu_seqlens_q, cu_seqlens_k):
        sequence_offsets(name, "cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
        sequence_offsets(name, "cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
    if scale is None:
        scale = default_scale(q.shape[2])
    window_left, window_right = window(name, window_size, is_causal)
    options = Options(
        dropout_p=float(dropout_p), scale=float(scale), softcap=float(softcap), window_left=window_left,
        window_right=window_right, diagonal=None if causal_align == "bottom_right" else 0,
    )  # fmt: skip
    scalars = max_seqlen_q, max_seqlen_k, *options.of_sequences()
    refused = unserved(q, k, v, alibi_slopes)
    backend = choose(OPERATION, q, (k, v), refused=refused)
    seed = seed_for("attention_varlen", seed, dropout_p, q)
    tensors = q, k, v, cu_seqlens_q.contiguous(), cu_seqlens_k.contiguous(), alibi_slopes, seed
    if backend is None and (refused or tracing_derivatives((q, k, v))):
        out, lse = reference_fwd(*tensors, *scalars)
    else:  # the reference is a part of the operator too, where a compiled graph cannot loop over sequences
        out, lse = apply(_Varlen, *tensors, scalars, backend or "torch")
    return (out, lse) if return_lse else out
