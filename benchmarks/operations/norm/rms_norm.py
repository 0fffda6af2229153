"""RMSNorm alone, and with the residual added in the same pass over memory."""

from __future__ import annotations

from benchmarks.known import HOST, TINY, TORCHS, TWICE, Story, fresh
from benchmarks.operation import Case
from benchmarks.operations.norm._norms import Shape, gpu_cases, operation, points

CASES = (
    Case("2048x4096", Shape(2048, 4096), ("forward", "backward"), model="Llama 2 7B, 2048 tokens"),
    Case("2048x1024", Shape(2048, 1024), ("forward", "backward", "double-backward"), quick=True,
         model="T5 large, 4 x 512 tokens"),
    Case("residual 2048x4096", Shape(2048, 4096, True), ("forward", "training"),
         model="Llama 2 7B, from memory"),
    Case("residual 256x1024", Shape(256, 1024, True), ("forward", "training", "double-backward"),
         quick=True, model="T5 large, in cache"),
    Case("tiny 8x16", Shape(8, 16), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: x and y once, with a residual x, r, y and the sum once.",
    elsewhere="torch computes it from six elementwise operations and a reduction on a CPU; torch.compile fuses them.",
    gaps=(
        TWICE,
        TINY,
        TORCHS,
        fresh("2048x4096"),
        HOST,
    ),
)

OPERATION = operation(
    "rms_norm",
    parameters=1,
    eps=1e-6,
    cases=CASES,
    gpu=gpu_cases((16384, 2048, 96), (8192, 4096, 300), (1024, 32768, 5000)),
)

POINTS = points(OPERATION)
