"""BatchNorm, with ReLU and a residual behind it in the same pass over memory."""

from __future__ import annotations

from benchmarks.known import CPUS, NOT_LOOKED_INTO, TORCHS, WAS_TWICE, Gap, Story, turned
from benchmarks.operation import gpu_case
from benchmarks.operations.norm._channels import LAYOUTS, Shape, case, operation, points

SIZES = {
    (8, 64, 56, 56): "ResNet-50, first stage",
    (8, 256, 56, 56): "ResNet-50, end of a first block",
    (8, 2048, 7, 7): "ResNet-50, last stage",
}
BOTH = ("forward", "backward")

ENDINGS = (  # activation, with a residual, statistics of the input, modes
    (None, False, True, BOTH),
    ("relu", False, True, BOTH),
    ("relu", True, True, BOTH),
    ("relu", False, False, ("forward",)),
)

CASES = (
    *(
        case(
            Shape(size, layout, activation=activation, residual=residual, uses_input=uses_input),
            *modes,
            model=model,
            quick=size[1] == 64 and activation == "relu" and uses_input,
        )
        for size, model in SIZES.items()
        for layout in LAYOUTS
        for activation, residual, uses_input, modes in ENDINGS
    ),
    case(Shape((4, 16, 8, 8), activation="relu"), "double-backward", model="a critic under a gradient penalty"),
)

STORY = Story(
    limit="Memory: x and y once; the backward reads dy and x and writes dx.",
    elsewhere="torch's kernels read x twice, once for the statistics, and ReLU and the sum are passes of their own.",
    gaps=(
        WAS_TWICE,
        TORCHS,
        *turned("NHWC"),
        Gap(
            "eval", "so small a call that what is outside of our core shows: the column host", host=0.25, families=CPUS
        ),
        Gap("eval", NOT_LOOKED_INTO),
        Gap("2048x7x7 NCHW", NOT_LOOKED_INTO),
        Gap("NHWC", "the statistics need all rows before the first is written: x is read twice", families=CPUS),
        Gap(
            "",
            "a channel is read for its statistics, or for the sums of the backward, and again for what is written",
            families=CPUS,
        ),
    ),
)

OPERATION = operation(
    "batch_norm",
    cases=CASES,
    gpu=tuple(
        gpu_case(f"{layout} {activation or 'alone'}", Shape((64, 256, 56, 56), layout, activation=activation),
                 Shape((3, 20, 5, 4), layout, activation=activation), *BOTH)
        for layout in LAYOUTS for activation in (None, "relu")
    ),
)  # fmt: skip

POINTS = points(OPERATION, groups=0)
