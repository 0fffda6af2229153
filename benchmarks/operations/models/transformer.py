"""Whole layers, a whole training step, the overhead that tiny tensors feel, and what an import takes. Modules go through
pyflash.replace."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.known import Gap, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    kind: str  # layer, encoder, attention, weights, sdpa, import
    batch: int
    tokens: int
    width: int
    heads: int
    hidden: int = 0
    layers: int = 1
    dropout: float = 0.0
    causal: bool = False


DEMO = {"batch": 16, "tokens": 256, "width": 256, "heads": 8, "hidden": 1024, "layers": 4, "causal": True}
TINY = {"batch": 2, "tokens": 8, "width": 32, "heads": 4}

CASES = (
    Case("layer B8 S512 d768", Shape("layer", 8, 512, 768, 12, 3072), ("forward",), model="BERT base"),
    Case("layer B16 S256 d256", Shape("layer", 16, 256, 256, 8, 1024), ("forward",), quick=True,
         model="the demo"),
    Case("attention weights B16 S256 d256", Shape("weights", 16, 256, 256, 8),
         ("forward", "training"), quick=True, model="nn.MultiheadAttention as it is by default"),
    Case("step 4 layers, no dropout", Shape("encoder", **DEMO), ("training",), optimizer=True,
         model="the demo: B16 S256 d256 h8 ffn1024, causal, AdamW"),
    Case("step 4 layers, dropout 0.1", Shape("encoder", **DEMO, dropout=0.1), ("training",), quick=True,
         optimizer=True, model="the same with torch's default dropout"),
    Case("tiny SDPA B2 H4 S8 D8", Shape("sdpa", **TINY), ("forward",), quick=True),
    Case("tiny MultiheadAttention", Shape("attention", **TINY), ("forward",), quick=True),
    Case("tiny encoder layer", Shape("layer", **TINY, hidden=64), ("forward",), quick=True),
    Case("import", Shape("import", 1, 1, 1, 1), ("forward",),
         model="a new interpreter that imports torch, and pyflash with it"),
)  # fmt: skip

GPU = (
    gpu_case("layer B8 S512 d1024", Shape("layer", 8, 512, 1024, 16, 4096), Shape("layer", 2, 9, 32, 4, 64), "forward",
             "training"),
    gpu_case("attention weights B8 S512 d1024", Shape("weights", 8, 512, 1024, 16), Shape("weights", 2, 9, 32, 4),
             "forward", "training"),
)  # fmt: skip


class SelfAttention(nn.Module):
    """MultiheadAttention of a sequence with itself; the weights, averaged over heads, are None unless needed."""

    def __init__(self, width: int, heads: int, need_weights: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)


class CausalEncoder(nn.Module):
    def __init__(self, layer: nn.Module, layers: int, tokens: int):
        super().__init__()
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        return self.encoder(x, mask=self.mask, is_causal=True)


def module(case: Case) -> nn.Module:
    shape = case.shape
    if shape.kind in ("attention", "weights"):
        return SelfAttention(shape.width, shape.heads, need_weights=shape.kind == "weights")
    layer = nn.TransformerEncoderLayer(shape.width, shape.heads, shape.hidden, dropout=shape.dropout, batch_first=True)
    return CausalEncoder(layer, shape.layers, shape.tokens) if shape.kind == "encoder" else layer


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    if shape.kind == "sdpa":
        return torch.randn(3, shape.batch, shape.heads, shape.tokens, shape.width // shape.heads).unbind(0)
    return (torch.randn(shape.batch, shape.tokens, shape.width),)


def importing(modules: str):
    """Passes its input on, after a new interpreter has imported them."""

    def call(x):
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        return x

    return call


def torchs(case: Case):
    if case.shape.kind == "import":
        return importing("torch")
    return nn.functional.scaled_dot_product_attention if case.shape.kind == "sdpa" else module(case)


def ours(case: Case):
    import pyflash
    import pyflash.functional as PF

    if case.shape.kind == "import":
        return importing("torch, pyflash")
    return PF.scaled_dot_product_attention if case.shape.kind == "sdpa" else pyflash.replace(module(case))


def parameters(shape: Shape) -> int:
    """Weights of the matrix products of all layers."""
    projections = 0 if shape.kind == "sdpa" else 4 * shape.width**2
    return shape.layers * (projections + 2 * shape.width * shape.hidden)


def flops(case: Case, mode: str) -> float | None:
    """None for an import: nobody has counted its products."""
    shape = case.shape
    if shape.kind == "import":
        return None
    times = {"forward": (1.0, 1.0), "backward": (2.0, 2.5), "training": (3.0, 3.5)}[mode]
    linear = 2 * parameters(shape) * shape.batch * shape.tokens
    attention = shape.layers * 4 * shape.batch * shape.tokens**2 * shape.width / (2 if shape.causal else 1)
    return times[0] * linear + times[1] * attention


def exps(case: Case, mode: str) -> float:
    """Attention's, as in attention.py."""
    shape = case.shape
    scores = shape.layers * shape.batch * shape.heads * shape.tokens**2 / (2 if shape.causal else 1)
    return {"forward": 1, "backward": 1, "training": 2}[mode] * scores


def bytes_(case: Case, mode: str) -> float:
    """The weights and the input and output of every layer: far below the FLOPs, so nothing finer is counted."""
    shape = case.shape
    once = parameters(shape) + 2 * shape.layers * shape.batch * shape.tokens * shape.width
    return {"forward": 1, "backward": 2, "training": 3}[mode] * once * case.itemsize


STORY = Story(
    limit="Linear's and attention's FLOPs together; the smaller the model, the more everything between them.",
    elsewhere="torch.compile gains nothing here on a CPU: it calls the same MKL and flash kernels.",
    gaps=(
        Gap("tiny", "what remains is Python, once for every operation inside"),
        Gap("import", "ours is torch's import and a little more"),
        Gap("", "the share of Linear, where torch is near the peak as well (Amdahl)"),
    ),
)

OPERATION = Operation(
    name="transformer",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=flops,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)
