"""LayerNorm alone, and with the residual added in the same pass over memory."""

from __future__ import annotations

from benchmarks import peers
from benchmarks.known import AMX, TINY, TWICE, ZEN_4, Gap, Story
from benchmarks.operation import Case
from benchmarks.operations.norm._norms import Shape, gpu_cases, operation, points

CASES = (
    Case("4096x1024", Shape(4096, 1024), ("forward", "backward"), model="BERT large, 8 x 512 tokens"),
    Case("4096x256", Shape(4096, 256), ("forward", "backward", "double-backward"), quick=True,
         model="the demo, 16 x 256 tokens"),
    Case("residual 4096x1024", Shape(4096, 1024, True), ("forward", "training"), quick=True,
         model="BERT large, from memory"),
    Case("residual 256x1024", Shape(256, 1024, True), ("forward", "training", "double-backward"),
         quick=True, model="BERT large, in cache"),
    Case("tiny 8x16", Shape(8, 16), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: x and y once, with a residual x, r, y and the sum once.",
    elsewhere="torch's kernel alone is at the limit out of cache; the separate sum is what fusing saves.",
    gaps=(
        TWICE,
        TINY,
        Gap(
            "256x1024",
            "in cache the kernel takes about 40 us; Python and the outputs' allocation are the rest",
            families=ZEN_4 + AMX,
        ),
        Gap(
            "",
            "the sums over rows for the weight's and bias's gradients; where the C library puts the output, in or out of cache",
        ),
    ),
)

OPERATION = operation(
    "layer_norm",
    parameters=2,
    eps=1e-5,
    cases=CASES,
    peers=peers.LAYER_NORM,
    gpu=gpu_cases((32768, 1024, 96), (16384, 768, 77), (8192, 4096, 300), (1024, 32768, 5000)),
)

POINTS = points(OPERATION)
