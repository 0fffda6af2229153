"""`python -m benchmarks auto`: the table of this machine's family for `auto` (pyflash/auto/tables.py).

Walks a grid of sizes, torch against our backend asked for by name, both through their public functions: checked first,
then timed in turns by the harness, with tensors that move. Points come in an order that covers every question early;
they are written as they are found, and a second run measures what is missing. Which operations there are, and what
their rules compare, is read from the registry (pyflash/ops/core/backends.py).
"""

from __future__ import annotations

import datetime
import json
import math
import random
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from benchmarks import harness, machine
from benchmarks.check import Reference, Wrong
from benchmarks.operation import PROVIDERS, Case, Operation
from benchmarks.operation import points as points_of_files
from benchmarks.sampling import SAMPLERS, median_interval, paired_ratios
from pyflash.auto import conv as auto_conv
from pyflash.auto import pool, processor, tables
from pyflash.auto import softmax as auto_softmax
from pyflash.cli import explain
from pyflash.ops.core import backends
from pyflash.ops.linear.linear import OPERATIONS as PRODUCTS
from pyflash.ops.loss.arguments import SIZES as PAIRS
from pyflash.ops.norm.batch_norm import SIZES as BATCHES
from pyflash.ops.norm.channels import SIZES as CHANNELS
from pyflash.ops.norm.rows import SIZES as ROWS
from pyflash.ops.pool.windows import SIZES as WINDOWS
from pyflash.show.progress import Progress

EFFORT = {
    "cpu": harness.Effort(clean=15, seconds=0.3, patience=0.6, rounds=40),
    "cuda": harness.Effort(clean=9, seconds=0.2, rounds=9),
}
SAMPLE_SECONDS = 5e-4  # shorter than the suite's: there are thousands of points
# What a point takes on a quiet machine, with what comes before its samples, to say how long the walk will take: 1584 of
# convolutions, norms and pools took 300 s on Zen 5; 1195 of convolutions 546 s on Zen 4.
POINT_SECONDS = 0.2
MOST_FLOPS = {"cpu": 1.5e10, "cuda": 2e13}  # of a point: beyond it the nearest decides
MOST_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 30}  # of a row-wise one: larger ones take seconds and say the same
# Elements of a float32 result above 32 MB: the C library returns its memory to the system each time, whose new pages cost torch more
# than the arithmetic, and us less, who ask for large ones (ops/core/registry.py). 8388608 are just not yet.
LARGE_RESULT = 9 << 20
MODES = {"inference": "forward", "training": "training", "any": "forward", auto_conv.KEPT: "forward"}


@dataclass(frozen=True)
class Point:
    operation: str
    kind: str
    dtype: str
    mode: str
    sizes: tuple[int, ...]
    threads: str = ""

    @property
    def key(self) -> tuple:
        return self.operation, self.kind, self.dtype, self.mode, self.sizes, self.threads


# ---- how a point becomes a case of the suite ----------------------------------------------------------------------


OF_POINT = points_of_files()


def declared(point: Point) -> tuple[Operation, Case]:
    operation, shape = OF_POINT[point.operation](point.kind, point.sizes)
    if point.mode == auto_conv.KEPT:
        shape = replace(shape, is_layers=True)
    return operation, Case(str(point.sizes), shape, (MODES[point.mode],), dtype=point.dtype)


# ---- the grid -----------------------------------------------------------------------------------------------------

HALVES = ("bfloat16", "float16")


def kinds() -> dict[str, tuple[str, ...]]:
    """Of every operation that `auto` looks up in a table, by the name that it has there."""
    found: dict[str, dict] = {}
    for name, operation in backends.OPERATIONS.items():
        if operation.rules and not name.startswith(pool.BY_WINDOWS):
            looked_up, of_name = explain.asked_as(name)
            found.setdefault(looked_up, {}).update(dict.fromkeys(of_name))
    found[auto_conv.WITH_NORM] = dict.fromkeys(auto_conv.KINDS)
    return {name: tuple(of_name) for name, of_name in found.items()}


KINDS = kinds()
OPERATIONS = tuple(KINDS)
CONVOLUTIONS = (*dict.fromkeys(auto_conv.MEASURED_AS.values()), auto_conv.WITH_NORM)
SOFTMAXES = tuple(name for name in OPERATIONS if name in auto_softmax.MEASURED_AS)
GAN_LOSSES = "gan_discriminator_loss", "gan_generator_loss"
FUSED = "prelu", "glu", "gated_act", "bias_act", "bias_act_dropout_add"
NORMS, CHANNEL_NORMS, POOLS, LOSSES = (
    tuple(name for name in OPERATIONS if name in backends.OPERATIONS and backends.OPERATIONS[name].sizes in sizes)
    for sizes in ((ROWS,), (BATCHES, CHANNELS), (WINDOWS,), (PAIRS,))
)


def grid(operations, kinds, dtypes, modes, *axes) -> Iterator[Point]:
    for operation, kind, dtype, mode, sizes in product(operations, kinds, dtypes, modes, product(*axes)):
        yield Point(operation, kind, dtype, mode, sizes)


def squares(*lengths) -> list[tuple[int, int]]:
    return [(n, n) for n in lengths]


def attentions(kinds, dtypes, modes, heads, shapes) -> Iterator[Point]:
    for kind, dtype, mode, h, (queries, keys) in product(kinds, dtypes, modes, heads, shapes):
        yield Point("attention", kind, dtype, mode, (h, queries, keys, 64 if kind == "weights" else 128))


BOTH = ("inference", "training")


def convolutions(dtypes, modes, positions, channels) -> Iterator[Point]:
    """As many channels go in as come out, or three, or MobileNet's; the kernels that models have of each kind."""
    for name, kind in product(CONVOLUTIONS, auto_conv.KINDS):
        shape = kind.partition(" ")[0]
        kernels = {
            "pointwise": (1,),
            "narrow": (1,),
            "dense": (25,),
            "volume": (27,),
            "patches": (4,),
            "phases": (16,),
            "depthwise": (9, 49),
            "few": (9, 49),
            "strided_depthwise": (9,),  # MobileNet's
            auto_conv.DEPTHWISE_1D: (3, 31),
        }.get(shape, (9,))
        if name == "conv_transpose":
            if shape not in ("strided", "patches", "phases", "few"):
                continue  # models have no others
            kernels = (16,) if shape == "few" else kernels
        if name == auto_conv.MODULATED and shape not in ("pointwise", "3x3"):
            continue  # likewise
        dtypes_of = dtypes
        modes_of = [mode for mode in modes if mode != auto_conv.KEPT or auto_conv.is_packed(name, kind)]
        if name in (
            auto_conv.WITH_NORM,
            auto_conv.MODULATED,
        ):  # without gradients, of the type that people infer with on a CPU
            dtypes_of = [dtype for dtype in dtypes if dtype == "float32"]
            modes_of = [mode for mode in modes_of if mode != "training"]
            if name == auto_conv.WITH_NORM and auto_conv.KEPT in modes_of:
                modes_of = [auto_conv.KEPT]  # its weight is a layer's
        for dtype, mode, places, count, kernel in product(dtypes_of, modes_of, positions, channels, kernels):
            if mode != "training" and auto_conv.is_bound_by_weights(kind, places):
                continue  # torch's, whatever a point says
            if shape == "narrow":
                yield Point(name, kind, dtype, mode, (places, *((24, 144) if count == 64 else (144, 24)), kernel))
            elif shape != "few":
                yield Point(name, kind, dtype, mode, (places, count, count, kernel))
            elif count == 64:  # a network's first
                yield Point(name, kind, dtype, mode, (places, 3, count, kernel))


# DCGAN's with 16 images of 64x64: channels double where places become a fourth. The points between, of as many channels in as
# out, say nothing of 512: Zen 4, one thread, 256 to 512 channels of 8x8, all gradients: 64 ms of torch's, 48 of ours, where 256
# to 256 tie.
DOUBLED = (4096, 64, 128), (1024, 128, 256), (256, 256, 512)

# StyleGAN2's middle layers with eight images, (places, channels): of half as many places, or channels, points are lost, of twice as
# many won, and what they say together is torch's. Zen 4, one thread, torch's time over ours in training: 64 channels of 16x16
# 1.33, 128 of 8x8 1.19; a generator's and discriminator's step of 32x32 pixels with R1 1.23 with them, 1.18 without.
STYLEGAN2 = (512, 128), (2048, 64), (2048, 128)


def doubled_convolutions(modes) -> Iterator[Point]:
    for name, kind, mode in product(("conv", "conv_transpose"), auto_conv.KINDS, modes):
        if kind.startswith("phases") and (mode != auto_conv.KEPT or auto_conv.is_packed(name, kind)):
            for sizes in DOUBLED:
                yield Point(name, kind, "float32", mode, (*sizes, 16))


LAYERS, CELLS = (tuple(kind for kind in KINDS["rnn"] if kind.endswith(end)) for end in ("layers", "cell"))


def cpu_grid() -> Iterator[Point]:
    """On a CPU attention that records gradients is ours, and so is what torch has no fused kernel for."""
    features = (32, 256, 1024, 3072)
    yield from grid(["linear"], [""], ["float32"], BOTH, (1, 8, 32, 128, 512, 2048), features, features)
    yield from grid(["linear_act"], [""], ["float32"], BOTH, (1, 32, 512), features, features)
    yield from grid(PRODUCTS, [""], ["float64", *HALVES], BOTH, (1, 32, 512), (256, 1024), (256, 1024))
    yield from grid(PRODUCTS, [""], ["float64"], BOTH, (1, 32), (32,), (32,))  # small ones are torch's
    kinds = ("plain", "causal", "mask", "weights")
    shapes = [*squares(8, 32, 128, 512, 1024), (1, 64), (1, 1024)]
    yield from attentions(kinds, ["float32", "bfloat16"], ["inference"], (1, 16), shapes)
    yield from attentions(kinds, ["float64", "float16"], ["inference"], (1, 16), squares(32, 512))
    yield from grid(NORMS, [""], ["float32", "bfloat16"], BOTH, (1, 16, 128, 1024, 4096), (128, 1024, 4096))
    yield from grid(NORMS, [""], ["float64", "float16"], BOTH, (16, 1024), (256, 1024))
    softmaxes = KINDS["softmax"]
    yield from grid(SOFTMAXES, softmaxes, ["float32", "bfloat16"], BOTH, (8, 256, 4096), (16, 256, 2048, 1 << 14))
    yield from grid(SOFTMAXES, softmaxes, ["float64", "float16"], BOTH, (1024,), (512,))
    yield from grid(["cross_entropy"], softmaxes, ["float32", "bfloat16"], BOTH, (64, 2048), (16, 1024, 1 << 15))
    yield from grid(["cross_entropy"], softmaxes, ["float64", "float16"], BOTH, (1024,), (512,))
    heads = ["linear_cross_entropy"]
    yield from grid(heads, [""], ["float32", "bfloat16"], BOTH, (64, 512), (512, 1 << 12, 1 << 14), (64, 512))
    yield from grid(heads, [""], ["float64", "float16"], BOTH, (256,), (1 << 11,), (128,))
    yield from grid(CHANNEL_NORMS, [""], ["float32", "bfloat16"], BOTH, (512, 4096, 16384), (64, 256, 1024))
    yield from grid(CHANNEL_NORMS, [""], ["float64", "float16"], BOTH, (4096,), (256,))
    activations = KINDS["activation"]
    elements = [1 << power for power in (10, 14, 17, 20, 23)]
    yield from grid(["activation"], activations, ["float32"], BOTH, [*elements, LARGE_RESULT])
    yield from grid(["activation"], activations, ["bfloat16"], BOTH, elements[:-1])  # halves the time of these points
    yield from grid(["activation"], activations, ["float64", "float16"], BOTH, (1 << 12, 1 << 20))
    yield from grid(FUSED, [""], ["float32", "bfloat16"], BOTH, (1 << 14, 1 << 17, 1 << 20, 1 << 23, LARGE_RESULT))
    yield from grid(FUSED, [""], ["float64", "float16"], BOTH, (1 << 14, 1 << 20))
    yield from grid(["rrelu"], [""], ["float32", "float64", *HALVES], ["any"], (1 << 12, 1 << 20))
    yield from grid(POOLS, [""], ["float32"], BOTH, (1 << 12, 1 << 16, 1 << 20))
    yield from grid(POOLS, [""], ["bfloat16"], BOTH, (1 << 16,))
    yield from grid(["local_response_norm"], [""], ["float32"], BOTH, (1 << 14,))
    yield from grid(["normalize"], [""], ["float32"], BOTH, (1024,), (128,))
    yield from grid(["pixel_norm"], [""], ["float32"], BOTH, (64, 1024), (512,))
    yield from grid(["spectral_norm"], [""], ["float32"], BOTH, (1 << 12, 1 << 16, 1 << 20))
    yield from grid(["spectral_norm"], [""], ["float64", *HALVES], BOTH, (1 << 16,))
    yield from grid(["adaptive_instance_norm"], [""], ["float32"], BOTH, (64, 1024), (256, 2048))
    yield from grid(["pixel_norm", "adaptive_instance_norm"], [""], ["float64", *HALVES], BOTH, (256,), (512,))
    yield from grid(GAN_LOSSES, [""], ["float32"], BOTH, (1 << 6, 1 << 12, 1 << 15, 1 << 20))
    yield from grid(GAN_LOSSES, [""], ["float64", *HALVES], BOTH, (1 << 14,))
    yield from grid(LOSSES, [""], ["float32"], BOTH, (1 << 10, 1 << 14, 1 << 17, 1 << 20))
    yield from grid(LOSSES, [""], ["float64", *HALVES], BOTH, (1 << 17,))
    yield from grid(
        ["dropout"], [""], ["float32", "float64", *HALVES], ["any"], (256, 1 << 12, 1 << 16, 1 << 20, 1 << 23)
    )
    channels = (1 << 12, 1 << 16, 1 << 20, 1 << 23)
    yield from grid(["dropout2d"], [""], ["float32", "float64", *HALVES], ["any"], channels)
    yield from grid(["embedding"], [""], ["float32", "bfloat16"], BOTH, (256, 4096), (2048, 32768), (64, 768))
    yield from grid(["embedding"], [""], ["float64", "float16"], BOTH, (4096,), (2048,), (64, 768))
    images = [1 << power for power in (12, 15, 18, 21, 23)]
    yield from grid(["interpolate"], KINDS["interpolate"], ["float32", "bfloat16"], BOTH, images)
    yield from grid(["pad"], [""], ["float32", "bfloat16"], BOTH, [*images, 1 << 24])  # whose results have large pages
    yield from grid(["interpolate"], KINDS["interpolate"], ["float64", "float16"], BOTH, images[1:4:2])
    yield from grid(["pad"], [""], ["float64", "float16"], BOTH, images[1:4:2])
    resampled = ["upfirdn2d", "filtered_lrelu"]
    yield from grid(resampled, [""], ["float32"], BOTH, (1 << 12, 1 << 14, 1 << 17, 1 << 20))
    yield from grid(resampled, [""], ["float64", *HALVES], BOTH, (1 << 17,))
    yield from grid(["minibatch_stddev"], [""], ["float32"], BOTH, (1 << 10, 1 << 14, 1 << 18, 1 << 21))
    yield from grid(["minibatch_stddev"], [""], ["float64", *HALVES], BOTH, (1 << 16,))
    yield from convolutions(["float32"], (*BOTH, auto_conv.KEPT), (256, 1024, 4096, 25088), (64, 256))
    # ResNet's last layer, eight images: as many products as its other layers, of fewer places than their points have.
    yield from grid(
        ["conv"], ["3x3", "3x3 channels_last"], ["float32"], ["training"], (8 * 7 * 7,), (512,), (512,), (9,)
    )
    for (places, channels), kind in product(STYLEGAN2, ("3x3", "3x3 channels_last")):
        yield Point("conv", kind, "float32", "training", (places, channels, channels, 9))
    yield from doubled_convolutions((*BOTH, auto_conv.KEPT))
    yield from convolutions(["bfloat16"], BOTH, (256, 4096), (64, 256))
    yield from convolutions(["float64", "float16"], BOTH, (1024,), (64,))
    bags = KINDS["embedding_bag"]
    yield from grid(["embedding_bag"], bags, ["float32"], BOTH, (4096, 65536), (2048, 32768), (64,))
    yield from grid(["embedding_bag"], bags, ["float64", *HALVES], BOTH, (4096,), (2048,), (64,))
    yield from grid(["rnn"], LAYERS, ["float32"], BOTH, (2, 16, 128), (1, 8, 64), (32, 128, 512))
    yield from grid(["rnn"], LAYERS, ["float64", *HALVES], BOTH, (4, 64), (1, 32), (64, 256))
    yield from grid(["rnn"], (*LAYERS, *CELLS), ["float32"], ["training"], (1,), (1, 64), (64, 512))


def gpu_grid() -> Iterator[Point]:
    """What a few minutes allow: two ends of each axis, and few kernels to compile."""
    dtypes = "bfloat16", "float32"
    yield from grid(["linear"], [""], dtypes, BOTH, (64, 8192), (1024, 4096), (1024, 4096))
    yield from grid(["linear_act"], [""], ["bfloat16"], BOTH, (64, 8192), (1024, 4096), (4096,))
    yield from attentions(("plain", "causal", "mask"), dtypes, BOTH, (32,), squares(512, 4096))
    yield from attentions(["dropout"], ["bfloat16"], ["any"], (32,), squares(512, 2048))
    yield from attentions(["weights"], dtypes, ["inference"], (32,), squares(512, 2048))
    yield from grid(NORMS, [""], dtypes, BOTH, (1024, 32768), (1024, 4096))
    yield from grid(SOFTMAXES, KINDS["softmax"], dtypes, BOTH, (1024, 32768), (64, 1024, 1 << 15))
    yield from grid(["cross_entropy"], KINDS["cross_entropy"], dtypes, BOTH, (1024, 32768), (64, 1 << 15))
    yield from grid(["linear_cross_entropy"], [""], dtypes, BOTH, (512, 8192), (1 << 12, 1 << 16), (512, 2048))
    yield from grid(CHANNEL_NORMS, [""], dtypes, BOTH, (4096, 1 << 17), (64, 512))
    yield from grid(["activation"], KINDS["activation"], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["dropout", "dropout2d", "rrelu"], [""], dtypes, ["any"], (1 << 18, 1 << 25))
    yield from grid(FUSED, [""], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["embedding_bag"], KINDS["embedding_bag"], dtypes, BOTH, (65536, 1 << 20), (65536,), (64, 128))
    yield from grid(["embedding"], [""], dtypes, BOTH, (4096, 65536), (4096, 65536), (64, 1024))
    yield from grid(POOLS, [""], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from convolutions(dtypes, BOTH, (1 << 14, 1 << 18), (64, 256))
    yield from grid(["local_response_norm"], [""], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["normalize"], [""], dtypes, BOTH, (1024, 32768), (128, 4096))
    yield from grid(["pixel_norm", "adaptive_instance_norm"], [""], dtypes, BOTH, (1024, 16384), (512, 4096))
    yield from grid(["spectral_norm"], [""], dtypes, BOTH, (1 << 18, 1 << 23))
    yield from grid((*GAN_LOSSES, *LOSSES), [""], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["interpolate"], KINDS["interpolate"], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["pad"], [""], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["upfirdn2d", "filtered_lrelu", "minibatch_stddev"], [""], dtypes, BOTH, (1 << 18, 1 << 25))
    yield from grid(["rnn"], LAYERS, ["bfloat16"], BOTH, (64,), (16, 64), (64, 128, 256))
    yield from grid(["rnn"], LAYERS, ["float32"], BOTH, (64,), (64,), (128,))


def is_small_enough(point: Point, device: str) -> bool:
    if point.operation in (*NORMS, *CHANNEL_NORMS, *POOLS, *SOFTMAXES):
        return math.prod(point.sizes) <= MOST_ELEMENTS[device]
    operation, case = declared(point)
    return operation.flops(case, MODES[point.mode]) <= MOST_FLOPS[device]


def points(device: str, operations, threads: list[str]) -> list[Point]:
    """The common dtypes first; within them every question early."""
    found = [
        replace(point, threads=count)
        for point in (cpu_grid() if device == "cpu" else gpu_grid())
        for count in threads
        if point.operation in operations and is_small_enough(point, device)
    ]
    random.Random(0).shuffle(found)
    return sorted(found, key=lambda point: point.dtype in ("float64", "float16"))


# ---- one point ----------------------------------------------------------------------------------------------------


class Noisy(Exception):
    """Too few samples that nothing disturbed."""


def prepared(provider, reference: Reference) -> harness.Contender:
    """As the harness prepares one, without what a row of the suite says beside its times."""
    mode, case = reference.mode, reference.case
    with provider.scope():
        bound = reference.bind(reference.build(lambda case: provider.build(reference.operation, case)))
        errors = reference.check(bound)
        sampler = SAMPLERS[reference.device]
        with torch.set_grad_enabled(mode != "forward"):
            contender = harness.Contender(provider, harness.timed_call(bound, mode, case), mode, errors)
            contender.call()
            contender.seconds = min(sampler(contender.call, 1).seconds for _ in range(2))
    contender.repeats = max(1, int(SAMPLE_SECONDS / contender.seconds))

    def move():
        bound.move()
        return harness.timed_call(bound, mode, case)

    contender.move = move if reference.device == "cpu" else None
    return contender


def measured(point: Point, device: str) -> dict:
    """A row of the table. Raises Noisy, and NotImplementedError where we have no kernel."""
    operation, case = declared(point)
    row = {
        "operation": point.operation, "kind": point.kind, "dtype": point.dtype, "mode": point.mode,
        "threads": point.threads, "sizes": list(point.sizes),
    }  # fmt: skip
    torchs, ours = PROVIDERS["torch"], PROVIDERS["pyflash:cpu" if device == "cpu" else "pyflash:triton"]
    reference = Reference(operation, case, MODES[point.mode], device)
    try:
        contenders = [prepared(provider, reference) for provider in (torchs, ours)]
    except Wrong as failure:
        return row | {"ratio": 0.0, "low": 0.0, "note": f"wrong: {failure}"}
    samples = harness.measure(contenders, SAMPLERS[device], EFFORT[device])
    ratios = paired_ratios(samples["torch"], samples[ours.name])
    if len(ratios) < harness.MIN_CLEAN:
        raise Noisy
    low, _ = median_interval(ratios)
    times = {
        name: median(sample.seconds for sample in samples[provider.name] if sample.clean)
        for name, provider in (("torch_us", torchs), ("ours_us", ours))
    }
    return row | {
        "ratio": float(f"{median(ratios):.3g}"), "low": float(f"{min(low, median(ratios)):.3g}"),
        **{name: float(f"{seconds * 1e6:.3g}") for name, seconds in times.items()},
    }  # fmt: skip


# ---- the table ----------------------------------------------------------------------------------------------------


def here(device: str) -> dict:
    facts = explain.info()
    return {
        "device": device if device == "cpu" else facts["cuda device"],
        "cpu": facts["cpu"],
        "isa": facts.get("instruction set", ""),
        "threads": facts["threads"],
        "torch": facts["torch"],
        "triton": str(facts.get("triton") or "") if device != "cpu" else "",
        "commit": machine.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def save(path: Path, family: str, machine: dict, rows: list[dict]) -> None:
    """One row a line, in an order of its own: two walks differ in what was found and in nothing else."""
    rows = sorted(
        rows, key=lambda row: tuple(str(value) if isinstance(value, str) else value for value in row_key(row))
    )
    head = f'{{"family": {json.dumps(family)},\n"machine": {json.dumps(machine)},\n"rows": [\n'
    text = head + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


def row_key(row: dict) -> tuple:
    return row["operation"], row["kind"], row["dtype"], row["mode"], tuple(row["sizes"]), row["threads"]


def read(path: Path, family: str) -> list[dict]:
    """The rows of a walk that goes on. Raises ValueError where the file is none of this family."""
    if not path.exists():
        return []
    try:
        written = json.loads(path.read_text())
        of_family, rows = written["family"], written["rows"]
        tables.grouped(rows)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as failure:
        raise ValueError(f"{path}: not a table of `auto` ({failure!r})") from None
    if of_family != family:
        raise ValueError(f"{path}: is of the family {of_family}, this machine is of {family}; name another --output")
    return rows


def walk(device: str, operations, seconds: float | None, output: Path | None, threads: str | None) -> int:
    family = processor.family("cpu" if device == "cpu" else "triton")
    path = output or tables.FOLDER / f"{family}.json"
    path.parent.mkdir(exist_ok=True)
    rows = read(path, family)
    everyone = torch.get_num_threads()
    classes = [""] if device != "cpu" else ["one"] if everyone == 1 else ["several", "one"]
    work = points(device, operations, [threads] if threads in classes else classes)
    done = {row_key(row) for row in rows}
    work = [point for point in work if point.key not in done]
    machine.settle_allocator()
    start, saved, noisy, missing = time.monotonic(), time.monotonic(), 0, 0
    where = here(device)
    estimate = min(len(work) * POINT_SECONDS, seconds or math.inf)
    print(
        f"{family}: {len(work)} points to measure, about {estimate / 60:.0f} minutes; {len(done)} are in {path}",
        flush=True,
    )
    try:
        with Progress("auto", len(work)) as progress:
            for point in work:
                if seconds is not None and time.monotonic() - start > seconds:
                    break
                torch.set_num_threads(1 if point.threads == "one" else everyone)
                progress.note(
                    f"{point.operation} {point.kind} {point.dtype} {point.mode} {point.sizes} {point.threads}"
                )
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        rows.append(measured(point, device))
                except Noisy:
                    noisy += 1
                except Exception as failure:  # no kernel of ours, or no memory: `auto` has a rule for what is not there
                    missing += 1
                    progress.print(f"  {point.key}: {type(failure).__name__}: {str(failure)[:160]}")
                if time.monotonic() - saved > 10:
                    save(path, family, where, rows)
                    saved = time.monotonic()
                progress.advance()
    finally:
        torch.set_num_threads(everyone)
        save(path, family, where, rows)
    left = len(work) + len(done) - len(rows)
    minutes = (time.monotonic() - start) / 60
    print(
        f"{path}: {len(rows)} rows; {left} not measured, of them {noisy} too noisy and {missing} not served;"
        f" {minutes:.1f} minutes"
    )
    return 0
