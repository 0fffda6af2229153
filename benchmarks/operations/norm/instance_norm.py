"""InstanceNorm, as style transfer has it."""

from __future__ import annotations

from benchmarks.known import CPUS, TORCHS, WAS_TWICE, Gap, Story, turned
from benchmarks.operation import gpu_case
from benchmarks.operations.norm._channels import LAYOUTS, Shape, case, operation, points

BOTH = ("forward", "backward")
SIZES = {
    (4, 32, 256, 256): "fast style transfer, first layer",
    (4, 128, 64, 64): "fast style transfer, residual blocks",
}

CASES = (
    *(
        case(Shape(size, layout, size[1]), *BOTH, model=model, quick=size[1] == 128)
        for size, model in SIZES.items()
        for layout in LAYOUTS
    ),
    case(Shape((2, 16, 8, 8), groups=16), "double-backward", model="a penalty of a small critic"),
)

STORY = Story(
    limit="Memory: x and y once; the backward reads dy and x and writes dx.",
    elsewhere="torch's is BatchNorm of a copy with the samples as channels; with the channels last it copies first.",
    gaps=(
        WAS_TWICE,
        TORCHS,
        *turned("NHWC"),
        Gap("NHWC", "the statistics need all rows before the first is written: x is read twice", families=CPUS),
        Gap(
            "",
            "a plane is read for its statistics, or for the sums of the backward, and again for what is written",
            families=CPUS,
        ),
    ),
)

OPERATION = operation(
    "instance_norm",
    cases=CASES,
    gpu=tuple(
        gpu_case(layout, Shape((16, 128, 128, 128), layout, 128), Shape((2, 20, 5, 4), layout, 20), *BOTH)
        for layout in LAYOUTS
    ),
)

POINTS = points(OPERATION, activations=(None,))
