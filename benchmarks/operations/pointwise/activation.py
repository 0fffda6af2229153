"""Activations: one read, one write, and whatever the polynomial costs between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.known import AMX, TINY, WAS_TWICE, ZEN_4, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case
from pyflash.activations import ACTIVATIONS


@dataclass(frozen=True)
class Shape:
    name: str  # a row of the activation table
    rows: int
    cols: int

    @property
    def numel(self) -> int:
        return self.rows * self.cols


BOTH = ("forward", "backward")

# Rows that differ in what bounds them; of each other row there is one shape.
SHOWN = ("relu", "gelu", "gelu_tanh", "silu", "mish", "tanh", "sigmoid")
VALUES = {"threshold": (0.1, 0.0)}  # of parameters without a default


def every(label: str, rows: int, cols: int, modes=BOTH, names=SHOWN, **settings) -> tuple[Case, ...]:
    return tuple(Case(f"{name} {label}", Shape(name, rows, cols), modes, **settings) for name in names)


CASES = (
    *every("4096x3072", 4096, 3072, names=ACTIVATIONS, model="GPT-2 feed-forward, 4096 tokens"),
    *every("small 64x3072", 64, 3072, model="GPT-2 feed-forward, 64 tokens", quick=True),
    *every(
        "256x1024",
        256,
        1024,
        ("double-backward",),
        (*SHOWN, "elu", "softplus"),
        model="a critic under a gradient penalty",
    ),
    Case("relu tiny 8x16", Shape("relu", 8, 16), ("forward",), quick=True),
    Case("gelu tiny 8x16", Shape("gelu", 8, 16), ("forward",), quick=True),
)

# Bound by bandwidth, by instructions, and by both; in bfloat16, where instructions weigh most, all of them.
GPU = tuple(
    gpu_case(f"{name} 64M", Shape(name, 16384, 4096), Shape(name, 30, 100), "forward", "backward", dtype=dtype)
    for dtype, names in (("bfloat16", ACTIVATIONS), ("float32", ("relu", "gelu", "silu", "tanh")))
    for name in names
)


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (torch.randn(case.shape.rows, case.shape.cols),)


def ours(case: Case):
    from pyflash import functional

    name = case.shape.name
    if name == "gelu_tanh":
        return partial(functional.gelu, approximate="tanh")
    return with_values(name, getattr(functional, name))


def with_values(name: str, function):
    """A function of the tensor alone."""
    return (lambda x: function(x, *VALUES[name])) if name in VALUES else function


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]  # x, y; dy, x or y, dx
    return tensors * case.shape.numel * case.itemsize


def exps(case: Case, mode: str) -> float:
    """As many as the table's formula has to have, however often it writes them: none of relu and of erf, one of the rest."""
    row = ACTIVATIONS[case.shape.name]
    formulas = {"forward": [row.forward], "backward": [row.backward], "training": [row.forward, row.backward]}[mode]
    with_exp = sum(
        any(f"{name}(" in formula for name in ("exp", "expm1", "sigmoid", "tanh", "tanh_rest", "normal_pdf"))
        for formula in formulas
    )
    return with_exp * case.shape.numel


STORY = Story(
    limit="Memory: one read and one write an element; out of cache a copy's time, and the pages of a new output.",
    elsewhere="torch's own vectorised loops; a compiler that fuses the activation into its producer beats any of them.",
    gaps=(
        WAS_TWICE,
        TINY,
        Gap(
            "small",
            "a call takes 17 to 80 us, and some microseconds of Python around it show, also where torch computes",
            families=ZEN_4 + AMX,
        ),
        Gap("small", "so short a call that the Python around it shows, also where torch computes"),
        Gap(
            "4096x3072", "the output's pages are new at every call, which a copy into memory that is there does not pay"
        ),
        Gap(
            "",
            "erf and tanh are polynomials of about 60 vector instructions here; where torch is as fast, `auto` leaves it to it",
        ),
    ),
)

OPERATION = Operation(
    name="activation",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: with_values(case.shape.name, ACTIVATIONS[case.shape.name].reference),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)

POINTS = {"activation": lambda kind, sizes: (OPERATION, Shape(kind, 1, *sizes))}
