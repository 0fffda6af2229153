"""Scaled dot-product attention: forward, training, causal, bfloat16, dropout, and one query against a long cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import peers
from benchmarks.check import SEED, Bound, Wrong
from benchmarks.known import AMX, NOT_LOOKED_INTO, TWICE, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.pointwise.dropout import expect_share


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
    kind: str = ""  # or "bias", "window", "packed", "weights": what else a kernel of ours does

    @property
    def all_keys(self) -> int:
        return self.keys or self.queries


BOTH = ("forward", "training")


CASES = (
    Case("B1 H8 N2048 D64", Shape(1, 8, 2048, 64), BOTH, quick=True, model="Transformer base, 2048 tokens"),
    Case("B1 H8 N2048 D64 causal", Shape(1, 8, 2048, 64, causal=True), BOTH, quick=True,
         model="the same as a decoder"),
    Case("B1 H8 N2048 D32", Shape(1, 8, 2048, 32), BOTH, model="the demo's heads"),
    Case("B1 H8 N2048 D96", Shape(1, 8, 2048, 96), BOTH, model="Phi-3 mini heads"),
    Case("B1 H8 N2048 D128", Shape(1, 8, 2048, 128), BOTH, model="Llama heads"),
    Case("B2 H8 N512 D64", Shape(2, 8, 512, 64), BOTH, quick=True, model="BERT heads, 512 tokens"),
    Case("B8 H8 N128 D64", Shape(8, 8, 128, 64), BOTH, quick=True, model="BERT heads, 128 tokens"),
    Case("twice B8 H8 N128 D64", Shape(8, 8, 128, 64, twice=True), ("double-backward",), quick=True,
         model="a gradient penalty"),
    Case("B16 H8 N256 D32 causal", Shape(16, 8, 256, 32, causal=True), BOTH, model="the demo's step"),
    Case("B1 H32/8 N1024 D128 causal", Shape(1, 32, 1024, 128, causal=True, kv_heads=8), BOTH,
         model="Llama 3 8B, grouped queries"),
    Case("B1 H8 N2048 D64", Shape(1, 8, 2048, 64), BOTH, dtype="bfloat16",
         quick=True),
    Case("B1 H8 N2048 D64 causal", Shape(1, 8, 2048, 64, causal=True), BOTH, dtype="bfloat16"),
    Case("B16 H8 N256 D32 causal dropout", Shape(16, 8, 256, 32, causal=True, dropout=0.1), ("training",),
         quick=True, model="the demo's step at dropout 0.1"),
    Case("B2 H8 N512 D64 dropout", Shape(2, 8, 512, 64, dropout=0.1), ("training",), model="BERT training"),
    Case("decode B8 H8 S4096 D64", Shape(8, 8, 1, 64, keys=4096), ("forward",), quick=True,
         model="one token against its cache, through SDPA"),
    Case("attention_decode B8 H8 S4096 D64", Shape(8, 8, 1, 64, keys=4096, cached=True), ("forward",),
         quick=True, model="the same through attention_decode"),
)  # fmt: skip

WINDOW = 256  # keys seen to the left


def gpu(name: str, shape: Shape, small: tuple[int, int, int, int], *modes: str, dtype: str = "bfloat16") -> Case:
    batch, heads, queries, dim = small
    sizes = {"batch": batch, "heads": heads, "queries": queries, "dim": dim}
    sizes |= {"keys": 90 if shape.keys else None, "kv_heads": max(1, heads // 4) if shape.kv_heads else None}
    return gpu_case(name, shape, replace(shape, **sizes), *modes, dtype=dtype)


SMALL, ALL = (1, 2, 70, 16), ("forward", "backward")
GPU = (
    *(
        gpu(f"B4 H16 N4096 D{dim}{' causal' * causal}", Shape(4, 16, 4096, dim, causal=causal), SMALL, *ALL)
        for dim in (64, 128)
        for causal in (False, True)
    ),
    gpu("B4 H16 N2048 D256 causal", Shape(4, 16, 2048, 256, causal=True), (1, 2, 40, 130), *ALL),
    gpu("B4 H16 N2048 D64 float16", Shape(4, 16, 2048, 64, causal=True), SMALL, *ALL, dtype="float16"),
    gpu("B4 H16 N1000 D80", Shape(4, 16, 1000, 80), (1, 2, 50, 20), *ALL),  # no multiple of a tile
    gpu("B4 H16/4 N2048 D64 causal", Shape(4, 16, 2048, 64, causal=True, kv_heads=4), (1, 4, 40, 16), *ALL),
    gpu("bias B4 H16 N2048 D64", Shape(4, 16, 2048, 64, kind="bias"), SMALL, *ALL),
    gpu("window B4 H16 N2048 D64", Shape(4, 16, 2048, 64, causal=True, kind="window"), SMALL, *ALL),
    gpu("packed 4x2048 H16 D64", Shape(4, 16, 2048, 64, causal=True, kind="packed"), (2, 2, 40, 16), *ALL),
    gpu("dropout B2 H16 N2048 D64", Shape(2, 16, 2048, 64, dropout=0.1), SMALL, *ALL),
    gpu("B4 H16 N512 D64", Shape(4, 16, 512, 64), (1, 2, 40, 16), *ALL, dtype="float32"),
    gpu("weights B4 H16 N1024 D64", Shape(4, 16, 1024, 64, kind="weights"), (1, 2, 40, 16), *ALL),
    gpu("decode B8 H32/8 S8192 D128", Shape(8, 32, 1, 128, 8192, kv_heads=8, cached=True), (2, 4, 1, 16), "forward"),
    gpu("decode B1 H32/8 S8192 D128", Shape(1, 32, 1, 128, 8192, kv_heads=8, cached=True), (1, 4, 1, 16), "forward"),
)


def part(case: Case, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The first query heads of one key head; of the first sequence, but a bias is the same for all of them."""
    shape = case.shape
    heads = shape.heads // (shape.kv_heads or shape.heads)
    if shape.kind == "packed":
        q, k, v, offsets = tensors
        return *(x[: shape.queries, :heads] for x in (q, k, v)), offsets[:2]
    q, k, *rest = tensors
    sequences = shape.batch if shape.kind == "bias" else 1
    values = [x[:sequences, :1] for x in rest[:1]]
    others = [x[:, :heads] if shape.kind == "bias" else x[:sequences] for x in rest[1:]]
    return q[:sequences, :heads], k[:sequences, :1], *values, *others


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    if shape.kind == "packed":
        q, k, v = (torch.randn(shape.batch * shape.queries, shape.heads, shape.dim) for _ in range(3))
        return q, k, v, torch.arange(shape.batch + 1, dtype=torch.int32) * shape.queries
    q = torch.randn(shape.batch, shape.heads, shape.queries, shape.dim)
    k, v = torch.randn(2, shape.batch, shape.kv_heads or shape.heads, shape.all_keys, shape.dim).unbind(0)
    lengths = (torch.full((shape.batch,), shape.all_keys, dtype=torch.int32),) if shape.cached else ()
    if shape.kind == "weights":
        return q, k
    bias = (torch.randn(1, shape.heads, shape.queries, shape.all_keys),) if shape.kind == "bias" else ()
    return q, k, v, *bias, *lengths


def sdpa(function, case: Case):
    shape = case.shape
    settings = {"dropout_p": shape.dropout, "is_causal": shape.causal, "enable_gqa": shape.kv_heads is not None}
    call = partial(function, **{name: value for name, value in settings.items() if value})
    return (lambda q, k, v, lengths: call(q, k, v)) if shape.cached else call


def torch_window(q, k, v):
    rows, cols = torch.arange(q.shape[-2], device=q.device)[:, None], torch.arange(k.shape[-2], device=q.device)
    return F.scaled_dot_product_attention(q, k, v, (cols <= rows) & (cols >= rows - WINDOW))


def torch_packed(case: Case):
    def attention(q, k, v, offsets):
        dense = (x.unflatten(0, (-1, case.shape.queries)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*dense, is_causal=case.shape.causal).transpose(1, 2).flatten(0, 1)

    return attention


def torch_weights(q, k):
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)


def torchs(case: Case):
    if case.shape.kind in ("window", "packed", "weights"):
        return {"window": torch_window, "packed": torch_packed(case), "weights": torch_weights}[case.shape.kind]
    call = sdpa(F.scaled_dot_product_attention, case)
    if not case.shape.twice:
        return call

    def math(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return call(q, k, v)

    return math


def ours(case: Case):
    import pyflash.functional as PF

    shape = case.shape
    if shape.kind == "window":
        return partial(PF.attention, is_causal=True, window_size=(WINDOW, 0))
    if shape.kind == "weights":
        return PF.attention_weights
    if shape.kind == "packed":
        return lambda q, k, v, offsets: PF.attention_varlen(
            q, k, v, offsets, offsets, shape.queries, shape.queries, is_causal=shape.causal
        )
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
        raise Wrong("attends to keys past the causal border")
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


def exps(case: Case, mode: str) -> float:
    """One for each score, and in the backward again: probabilities are not kept."""
    shape = case.shape
    scores = shape.batch * shape.heads * shape.queries * shape.all_keys / (2 if shape.causal else 1)
    return {"forward": 1, "backward": 1, "training": 2}[mode] * scores


def bytes_(case: Case, mode: str) -> float:
    """q, k, v, out once; their gradients and they again backward."""
    shape = case.shape
    queries = shape.batch * shape.heads * shape.queries * shape.dim
    keys = shape.batch * (shape.kv_heads or shape.heads) * shape.all_keys * shape.dim
    return {"forward": 1, "backward": 2, "training": 3}[mode] * 2 * (queries + keys) * case.itemsize


STORY = Story(
    limit="FLOPs: 4 N^2 D a head forward, 10 backward, half of it causal; one query reads the cache once: memory.",
    elsewhere="On GPUs FlashAttention-3 reports 75% of an H100's bfloat16 peak forward (Shah et al. 2024). On CPUs"
    " torch's flash kernel calls MKL for its products and reaches half of the peak.",
    gaps=(
        TWICE,
        Gap(
            "",
            "the peak is that of the matrix units (AMX), which our kernels do not use; `auto` takes torch's",
            dtype="bfloat16",
            families=AMX,
        ),
        Gap("dropout", "a random number for each score: ten rounds of Philox for every four, forward and backward"),
        Gap("decode", NOT_LOOKED_INTO),
        Gap("", "softmax, rescaling and the packing of each tile take what is missing to the peak"),
    ),
)

OPERATION = Operation(
    name="attention",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=flops,
    bytes=bytes_,
    exps=exps,
    truth=truth,
    peers=peers.ATTENTION,
    gpu=GPU,
    part=part,
)


def masked(case: Case):
    """The inputs and a mask, of which every row lets something through."""
    q, k, v = inputs(case)
    return q, k, v, torch.rand(q.shape[-2], k.shape[-2]).lt(0.9) | torch.eye(q.shape[-2], k.shape[-2]).bool()


def ours_masked(case: Case):
    from pyflash import functional

    return lambda q, k, v, mask: functional.scaled_dot_product_attention(q, k, v, mask)


def our_weights(case: Case):
    from pyflash import functional

    return functional.attention_weights


# What a walk asks beside the suite's: a mask that is given, and the weights alone.
MASKED = replace(
    OPERATION,
    inputs=masked,
    torch=lambda case: lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask),
    pyflash=ours_masked,
    truth=None,
)
WEIGHTS = replace(
    OPERATION,
    inputs=lambda case: inputs(case)[:2],
    torch=lambda case: lambda q, k: torch.softmax(q @ k.mT * case.shape.dim**-0.5, -1),
    pyflash=our_weights,
    truth=None,
)


def _point(kind, sizes):
    heads, queries, keys, dim = sizes  # of q and of v together, but for the weights
    of_kind = {"mask": MASKED, "weights": WEIGHTS}.get(kind, OPERATION)
    dim = dim if kind == "weights" else dim // 2
    return of_kind, Shape(1, heads, queries, dim, keys, kind == "causal", 0.1 * (kind == "dropout"))


POINTS = {"attention": _point}
