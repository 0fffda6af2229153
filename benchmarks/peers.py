"""Other people's kernels, and torch's own one by one: a name and `case -> function of the case's inputs` each.

Nothing here is a dependency. A peer that cannot be imported, or does not serve a case, becomes an "unsupported" row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Provider


def unless(refused: bool, what: str) -> None:
    if refused:
        raise NotImplementedError(what)


# attention: inputs q, k, v as [batch, heads, length, head_dim]


def sdpa_backend(name: str):
    def build(case: Case):
        from torch.nn.attention import SDPBackend, sdpa_kernel

        shape = case.shape
        unless(shape.cached, "no cache lengths")

        def call(q, k, v):
            with sdpa_kernel(getattr(SDPBackend, name)):
                try:
                    return F.scaled_dot_product_attention(
                        q, k, v, dropout_p=shape.dropout, is_causal=shape.causal, enable_gqa=bool(shape.kv_heads)
                    )
                except RuntimeError as error:
                    raise NotImplementedError(str(error).split("\n")[0]) from None

        return call

    return build


def flex_attention(case: Case):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape = case.shape
    unless(shape.cached or shape.dropout > 0, "no cache lengths, no dropout")
    compiled = torch.compile(flex_attention)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mask = None
    if shape.causal:
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, shape.queries, shape.all_keys, device=device)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, enable_gqa=bool(shape.kv_heads))


def flash_attn(case: Case):
    """pip install flash-attn. Its layout is [batch, length, heads, head_dim]: views, no copies."""
    from flash_attn import flash_attn_func

    shape = case.shape
    unless(shape.cached, "no cache lengths")
    return lambda q, k, v: flash_attn_func(
        *(t.transpose(1, 2) for t in (q, k, v)), dropout_p=shape.dropout, causal=shape.causal
    ).transpose(1, 2)


def xformers(case: Case):
    """pip install xformers."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    shape = case.shape
    unless(shape.cached or shape.kv_heads is not None, "no cache lengths, no grouped queries in this layout")
    bias = LowerTriangularMask() if shape.causal else None
    return lambda q, k, v: memory_efficient_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), attn_bias=bias, p=shape.dropout
    ).transpose(1, 2)


ATTENTION = (
    Provider("torch:math", sdpa_backend("MATH")),
    Provider("torch:flash", sdpa_backend("FLASH_ATTENTION")),
    Provider("torch:efficient", sdpa_backend("EFFICIENT_ATTENTION"), devices=("cuda",)),
    Provider("torch:cudnn", sdpa_backend("CUDNN_ATTENTION"), devices=("cuda",)),
    Provider("flex_attention", flex_attention),
    Provider("flash-attn", flash_attn, devices=("cuda",)),
    Provider("xformers", xformers, devices=("cuda",)),
)


# layer_norm


def liger(case: Case):
    """pip install liger-kernel."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    unless(case.shape.residual, "no residual")
    return lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, 1e-5)


LAYER_NORM = (Provider("liger", liger, devices=("cuda",)),)
