"""Whole steps of adversarial training: a generator's and a discriminator's losses, regularisers, both gradients, AdamW.

One step is a discriminator's and a generator's in one: pictures are generated once, and the generator's loss does not
reach the discriminator's weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.known import Gap, Story
from benchmarks.operation import Case, Operation, Provider


@dataclass(frozen=True)
class Shape:
    generator: str | None
    discriminator: str
    batch: int
    image_size: int
    options: tuple = ()
    loss: str = "non_saturating"
    r1: float = 0.0
    penalty: float = 0.0

    @property
    def sizes(self) -> dict:
        return {"image_size": self.image_size, **dict(self.options)}


class Step(nn.Module):
    """(pictures, z) to the sum of the losses."""

    def __init__(self, shape: Shape, of):
        super().__init__()
        from pyflash.models import gan

        torch.manual_seed(0)
        self.shape = shape
        self.generator = getattr(gan, shape.generator)(**shape.sizes, nn=of) if shape.generator else None
        self.discriminator = getattr(gan, shape.discriminator)(**shape.sizes, nn=of)

    def forward(self, real, other):
        import pyflash.functional as F

        shape, critic = self.shape, self.discriminator
        fake = other if self.generator is None else self.generator(other)
        loss = F.gan_discriminator_loss(critic(real), critic(fake.detach()), shape.loss)
        with torch.enable_grad():  # also where outputs are compared
            if shape.r1:
                loss = loss + shape.r1 / 2 * F.r1_penalty(critic, real)
            if shape.penalty:
                between = (real + fake.detach()) / 2  # the same for everybody: its mix is random
                loss = loss + shape.penalty * F.gradient_penalty(critic, between, between)
        if self.generator is None:
            return loss
        fixed = {name: parameter.detach() for name, parameter in critic.named_parameters()}
        return loss + F.gan_generator_loss(torch.func.functional_call(critic, fixed, (fake,)), shape.loss)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    real = torch.randn(shape.batch, 3, shape.image_size, shape.image_size)
    return real, torch.randn(shape.batch, 100) if shape.generator else torch.randn_like(real)


def torchs(case: Case) -> nn.Module:
    return Step(case.shape, nn)


def ours(case: Case) -> nn.Module:
    import pyflash.nn

    return Step(case.shape, pyflash.nn)


def replaced(case: Case) -> nn.Module:
    import pyflash

    return pyflash.replace(torchs(case))


class Counter(TorchDispatchMode):
    """As torch's FlopCounterMode, which takes no gradient within."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@lru_cache(maxsize=8)
def flops(case: Case, mode: str) -> float:
    """Of the products and convolutions of ours, by torch's formulas: torch's second derivatives run zeros through the
    critic once more, which is no part of the problem."""
    step = ours(case)
    with Counter() as counter:
        step(*inputs(case)).backward()
    return float(counter.total)


DCGAN = ("DCGANGenerator", "DCGANDiscriminator")
STYLE = ("StyleGenerator", "StyleDiscriminator")
SMALL = (("width", 32),)
CASES = tuple(
    Case(name, shape, ("training",), model=origin, optimizer=True, quick=quick)
    for name, shape, origin, quick in (
        ("DCGAN B16 64x64", Shape(*DCGAN, 16, 64), "Radford et al. 2015", False),
        ("DCGAN B16 64x64 R1", Shape(*DCGAN, 16, 64, r1=1.0), "the same with R1", False),
        ("WGAN-GP critic B16 64x64", Shape(None, "WGANCritic", 16, 64, (), "wasserstein", penalty=10.0),
         "Gulrajani et al. 2017: a critic's step", True),
        ("style B8 32x32 R1", Shape(*STYLE, 8, 32, SMALL, r1=10.0), "StyleGAN2's architecture, 32 to 256 channels", False),
        ("style B4 64x64 R1", Shape(*STYLE, 4, 64, SMALL, r1=10.0), "StyleGAN2's architecture, 32 to 256 channels", False),
    )
)  # fmt: skip

STORY = Story(
    limit="The FLOPs of their convolutions, those of second derivatives included.",
    elsewhere="The style-based ones compute their resampling, modulation and activations in torch operations. In a penalty's"
    " gradient torch's second derivatives of convolutions and leaky ReLUs have zeros for what arrives at the critic's own results,"
    " and they run back through all of it.",
    gaps=(Gap("", "what `auto` gives to torch is torch's speed"),),
)

OPERATION = Operation(
    name="gan_step",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=flops,
    bytes=lambda case, mode: 0.0,  # weights and pictures; beside the FLOPs it is little
    providers=(
        Provider("torch", "torch"),
        Provider("pyflash", "pyflash"),
        Provider("pyflash.replace", replaced),
    ),
    outputs_only=True,
)
