"""The loss of a GAN's generator, of its logits."""

from __future__ import annotations

from benchmarks.operation import Case, Operation
from benchmarks.operations.loss._gan import GENERATOR, bytes_, cases, exps, gpu, inputs, points
from benchmarks.operations.loss._gan import STORY as STORY


def ours(case: Case):
    from pyflash import functional

    return lambda *logits: functional.gan_generator_loss(*logits, case.shape.kind)


OPERATION = Operation(
    name="gan_generator_loss",
    cases=cases(1),
    inputs=inputs,
    torch=lambda case: GENERATOR[case.shape.kind],
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=gpu(1),
)

POINTS = points(OPERATION, 1)
