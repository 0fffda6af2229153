"""Scaled dot-product attention: forward, training, causal, bfloat16, dropout, and one query against a long cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import peers
from benchmarks.check import SEED, Bound, Wrong
from benchmarks.dropout import expect_share
from benchmarks.operation import Case, Operation


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    queries: int
    dim: int
    keys: int | None = None  # as many as queries
    causal: bool = False
    dropout: float = 0.0
    kv_heads: int | None = None  # as many as heads
    cached: bool = False  # through attention_decode
    twice: bool = False  # differentiated twice, which torch's fused kernels are not: it is its math kernel then

    @property
    def all_keys(self) -> int:
        return self.keys or self.queries


def both(forward: float | None, training: float | None) -> dict[str, float | None]:
    return {"forward": forward, "training": training}


CASES = (
    Case("B1 H8 N2048 D64", Shape(1, 8, 2048, 64), both(2.2, 2.4), quick=True, model="Transformer base, 2048 tokens"),
    Case("B1 H8 N2048 D64 causal", Shape(1, 8, 2048, 64, causal=True), both(2.5, 2.6), quick=True,
         model="the same as a decoder"),
    Case("B1 H8 N2048 D32", Shape(1, 8, 2048, 32), both(1.9, 1.9), model="the demo's heads"),
    Case("B1 H8 N2048 D96", Shape(1, 8, 2048, 96), both(1.9, 1.9), model="Phi-3 mini heads"),
    Case("B1 H8 N2048 D128", Shape(1, 8, 2048, 128), both(1.9, 1.9), model="Llama heads"),
    Case("B2 H8 N512 D64", Shape(2, 8, 512, 64), both(1.9, 1.9), quick=True, model="BERT heads, 512 tokens"),
    Case("B8 H8 N128 D64", Shape(8, 8, 128, 64), both(1.9, 1.9), quick=True, model="BERT heads, 128 tokens"),
    Case("twice B8 H8 N128 D64", Shape(8, 8, 128, 64, twice=True), {"double-backward": None}, quick=True,
         model="a gradient penalty"),
    Case("B16 H8 N256 D32 causal", Shape(16, 8, 256, 32, causal=True), both(None, None), model="the demo's step"),
    Case("B1 H32/8 N1024 D128 causal", Shape(1, 32, 1024, 128, causal=True, kv_heads=8), both(None, None),
         model="Llama 3 8B, grouped queries"),
    Case("B1 H8 N2048 D64", Shape(1, 8, 2048, 64), both(3.6, None), dtype="bfloat16", isa="avx512_bf16",
         quick=True),
    Case("B1 H8 N2048 D64 causal", Shape(1, 8, 2048, 64, causal=True), both(3.6, None), dtype="bfloat16",
         isa="avx512_bf16"),
    Case("B16 H8 N256 D32 causal dropout", Shape(16, 8, 256, 32, causal=True, dropout=0.1), {"training": 12.0},
         quick=True, model="the demo's step at dropout 0.1"),
    Case("B2 H8 N512 D64 dropout", Shape(2, 8, 512, 64, dropout=0.1), {"training": 12.0}, model="BERT training"),
    Case("decode B8 H8 S4096 D64", Shape(8, 8, 1, 64, keys=4096), {"forward": 1.6}, quick=True,
         model="one token against its cache, through SDPA"),
    Case("attention_decode B8 H8 S4096 D64", Shape(8, 8, 1, 64, keys=4096, cached=True), {"forward": 1.6},
         quick=True, model="the same through attention_decode"),
)  # fmt: skip


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    q = torch.randn(shape.batch, shape.heads, shape.queries, shape.dim)
    k, v = torch.randn(2, shape.batch, shape.kv_heads or shape.heads, shape.all_keys, shape.dim).unbind(0)
    lengths = (torch.full((shape.batch,), shape.all_keys, dtype=torch.int32),) if shape.cached else ()
    return q, k, v, *lengths


def sdpa(function, case: Case):
    shape = case.shape
    settings = {"dropout_p": shape.dropout, "is_causal": shape.causal, "enable_gqa": shape.kv_heads is not None}
    call = partial(function, **{name: value for name, value in settings.items() if value})
    return (lambda q, k, v, lengths: call(q, k, v)) if shape.cached else call


def torchs(case: Case):
    call = sdpa(F.scaled_dot_product_attention, case)
    if not case.shape.twice:
        return call

    def math(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return call(q, k, v)

    return math


def ours(case: Case):
    import pyflash.functional as PF

    return PF.attention_decode if case.shape.cached else sdpa(PF.scaled_dot_product_attention, case)


def dropped_probabilities(bound: Bound) -> torch.Tensor:
    """P after dropout, [B, H, L, S]: out is linear in V and the mask follows the seed, so identity columns show it."""
    q, k, v = bound.inputs
    columns = torch.eye(k.shape[-2], dtype=v.dtype, device=v.device).split(v.shape[-1], dim=-1)
    shown = []
    with torch.no_grad():
        for part in columns:
            torch.manual_seed(SEED)
            shown.append(bound.function(q, k, part.expand(*v.shape[:-2], *part.shape).contiguous()))
    return torch.cat(shown, dim=-1)


def truth(case: Case, bound: Bound):
    """Float64 attention with the mask this provider drew; its rate is checked here, its use by the comparison."""
    shape = case.shape
    if not shape.dropout:
        return torchs(case)
    kept = dropped_probabilities(bound) != 0
    seen = torch.ones(shape.queries, shape.all_keys, dtype=torch.bool, device=kept.device)
    seen = seen.tril() if shape.causal else seen
    if (kept & ~seen).any():
        raise Wrong("attends to keys behind the causal border")
    expect_share(kept[..., seen], shape.dropout)

    def masked(q, k, v):
        scores = (q @ k.mT * shape.dim**-0.5).masked_fill(~seen, float("-inf"))
        return (scores.softmax(-1) * kept / (1 - shape.dropout)) @ v

    return masked


def flops(case: Case, mode: str) -> float:
    """Two products forward, five backward; causal counted as half."""
    shape = case.shape
    product = 2 * shape.batch * shape.heads * shape.queries * shape.all_keys * shape.dim
    products = {"forward": 2, "backward": 5, "training": 7}[mode]
    return products * product / (2 if shape.causal else 1)


def bytes_(case: Case, mode: str) -> float:
    """q, k, v, out once; their gradients and they again backward."""
    shape = case.shape
    queries = shape.batch * shape.heads * shape.queries * shape.dim
    keys = shape.batch * (shape.kv_heads or shape.heads) * shape.all_keys * shape.dim
    return {"forward": 1, "backward": 2, "training": 3}[mode] * 2 * (queries + keys) * case.itemsize


OPERATION = Operation(
    name="attention",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=flops,
    bytes=bytes_,
    truth=truth,
    peers=peers.ATTENTION,
)
