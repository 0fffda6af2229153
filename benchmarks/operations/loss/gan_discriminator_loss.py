"""The loss of a GAN's discriminator, of its logits."""

from __future__ import annotations

from benchmarks.operation import Case, Operation
from benchmarks.operations.loss._gan import DISCRIMINATOR, bytes_, cases, exps, gpu, inputs, points
from benchmarks.operations.loss._gan import STORY as STORY


def ours(case: Case):
    from pyflash import functional

    return lambda *logits: functional.gan_discriminator_loss(*logits, case.shape.kind)


OPERATION = Operation(
    name="gan_discriminator_loss",
    cases=cases(2),
    inputs=inputs,
    torch=lambda case: DISCRIMINATOR[case.shape.kind],
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=gpu(2),
)

POINTS = points(OPERATION, 2)
