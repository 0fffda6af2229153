"""GroupNorm, with SiLU behind it in the same pass over memory."""

from __future__ import annotations

from benchmarks.known import CPUS, TORCHS, WAS_TWICE, Gap, Story, turned
from benchmarks.operation import gpu_case
from benchmarks.operations.norm._channels import LAYOUTS, Shape, case, operation, points

BOTH = ("forward", "backward")
SIZES = {
    (2, 320, 64, 64): "Stable Diffusion's U-Net, its widest images",
    (2, 1280, 16, 16): "Stable Diffusion's U-Net, third stage",
}

CASES = (
    *(
        case(Shape(size, layout, 32, activation), *BOTH, model=model, quick=size[1] == 320 and activation == "silu")
        for size, model in SIZES.items()
        for layout in LAYOUTS
        for activation in ("silu", None)
    ),
    case(Shape((2, 32, 8, 8), groups=8, activation="silu"), "double-backward", model="a penalty of a small critic"),
)

STORY = Story(
    limit="Memory: x and y once; the backward reads dy and x and writes dx. SiLU has one exp an element.",
    elsewhere="torch's kernel reads x twice, and SiLU is a pass of its own; with the channels last it is much slower.",
    gaps=(
        WAS_TWICE,
        TORCHS,
        *turned("NHWC"),
        Gap(
            "NHWC silu",
            "the statistics need all rows before the first is written: x is read twice; and SiLU is arithmetic, 5.5 ns a vector"
            " of 16 on a core of Zen 4, 3.4 of them its exponential, which the limit does not count",
            families=CPUS,
        ),
        Gap("NHWC", "the statistics need all rows before the first is written: x is read twice", families=CPUS),
        Gap(
            "silu",
            "a group is read for its statistics and again, from the second cache; and SiLU's exponential is not counted",
            families=CPUS,
        ),
        Gap("", "a group is read for its statistics and again, from the second cache, to be normalised", families=CPUS),
    ),
)

OPERATION = operation(
    "group_norm",
    cases=CASES,
    gpu=tuple(
        gpu_case(f"{layout} silu", Shape((8, 320, 64, 64), layout, 32, "silu"), Shape((2, 64, 5, 4), layout, 32, "silu"),
                 *BOTH)
        for layout in LAYOUTS
    ),
)  # fmt: skip

POINTS = points(OPERATION, groups=32)
