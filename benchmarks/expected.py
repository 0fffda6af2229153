"""What the CUDA C++ kernels should take on a GPU where nobody has timed them yet: bytes, FLOPs, exponentials and latencies
over what that GPU can, the slowest of them deciding. Functions of the shape, to be confronted with `make gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.limits import EXP, FLOPS, MEMORY, Work
from benchmarks.table import seconds

LATENCY = "latency"  # of launches, of barriers between the steps of a recurrence
HALF = 2  # bytes of a number
UNITS = {False: 8, True: 16}  # that a block of a recurrent kernel owns with their gates, forward and backward


@dataclass(frozen=True)
class Device:
    """What the kernels reach of a GPU, not what its maker says."""

    name: str
    processors: int
    clock: float  # Hz
    bytes_per_s: float  # of its memory
    cache_bytes_per_s: float  # of its second cache, all processors together
    products: float  # FLOPs a second of mma.sync, half types
    flops: float  # of float32 multiply-adds
    exps: float
    launch: float  # seconds from one kernel to the next in a stream
    barrier: float  # of a grid, by flags


# 4.8 TB/s, of which copies reach 0.85; 989 TFLOP/s of wgmma, of which mma.sync reaches 0.62 (Luo et al. 2024,
# arXiv:2402.13499); 132 processors of 128 multiply-adds and 16 ex2 a cycle. A barrier by flags takes 0.8 us where
# cooperative groups take 1 to 2.
H200 = Device(
    name="H200",
    processors=132,
    clock=1.755e9,
    bytes_per_s=4.8e12 * 0.85,
    cache_bytes_per_s=5.5e12,
    products=989e12 * 0.62,
    flops=132 * 128 * 2 * 1.755e9,
    exps=132 * 16 * 1.755e9,
    launch=2e-6,
    barrier=0.8e-6,
)


@dataclass(frozen=True)
class Expected:
    """Seconds, and which of FLOPS, MEMORY, EXP and LATENCY they are."""

    seconds: float
    kind: str


def slowest(device: Device, work: Work, flops: float, launches: int = 1, waits: float = 0.0) -> Expected:
    """flops: FLOPs a second of the unit that does them. waits: seconds in which nothing else happens."""
    latency = launches * device.launch + waits
    times = {FLOPS: work.flops / flops, MEMORY: work.bytes / device.bytes_per_s, EXP: work.exps / device.exps}
    kind = max(times, key=times.__getitem__)
    return Expected(times[kind] + latency, LATENCY if latency > times[kind] else kind)


def activation(d: Device, elements: int, size: int = HALF) -> Expected:
    return slowest(d, Work(10 * elements, 2 * size * elements, elements), d.flops)


def rows(d: Device, rows: int, cols: int, tensors: int, size: int = HALF, exps: int = 0) -> Expected:
    """LayerNorm and softmax: a row is read once and written once, `tensors` in all."""
    elements = rows * cols
    return slowest(d, Work(8 * elements, tensors * size * elements, exps * elements), d.flops)


def attention(d: Device, batch: int, heads: int, length: int, dim: int, is_causal: bool = False) -> Expected:
    scores = batch * heads * length * length / (2 if is_causal else 1)
    moved = 4 * HALF * batch * heads * length * dim
    return slowest(d, Work(4 * scores * dim, moved, scores), d.products)


def attention_backward(d: Device, batch: int, heads: int, length: int, dim: int, is_causal: bool = False) -> Expected:
    """Three kernels: of each row's terms, of dq with three products, of dk and dv with four."""
    scores = batch * heads * length * length / (2 if is_causal else 1)
    moved = 15 * HALF * batch * heads * length * dim
    return slowest(d, Work(14 * scores * dim, moved, 2 * scores), d.products, launches=3)


def decode(d: Device, batch: int, heads: int, kv_heads: int, keys: int, dim: int) -> Expected:
    """One query a sequence. The caches are read once; a tile of 64 rows is multiplied whatever it holds."""
    tiles = batch * kv_heads * -(-heads // kv_heads // 64)
    moved = 2 * HALF * batch * kv_heads * keys * dim
    return slowest(d, Work(4 * 64 * tiles * keys * dim, moved, 64 * tiles * keys), d.products, launches=2)


def recurrence(d: Device, steps: int, batch: int, hidden: int, gates: int, is_backward: bool = False) -> Expected:
    """A grid that stays: each step a barrier, the state of all units to every processor, a product, the gates' arithmetic.

    The products with x and those of the weights' gradients are a matrix product's, and not in here. A processor's share of the
    weights lies in registers, 128 KB of them, and beyond that in shared memory, which gives 128 bytes a cycle. Backward, what
    every processor reads is of all gates.
    """
    units = UNITS[is_backward]
    blocks = -(-hidden // units)  # of a group, which walks some of the sequences, in tiles of 8
    tiles = -(-batch // 8)
    groups = max(1, min(tiles, d.processors // blocks))
    processors, rows = min(d.processors, groups * blocks), -(-tiles // groups) * 8
    inbound = groups * blocks * rows * hidden * HALF * (gates if is_backward else 1) / d.cache_bytes_per_s
    product = 2 * groups * rows * gates * hidden * hidden / (d.products * processors / d.processors)
    share = gates * hidden * units * HALF
    from_shared = max(0.0, share - (128 << 10)) / 128 / d.clock
    step = d.barrier + inbound + max(product, from_shared) + 0.15e-6
    stored = steps * batch * hidden * HALF * (2 * gates + 4)
    return slowest(d, Work(0, stored), d.flops, waits=steps * step)


def windows(d: Device, batch: int, channels: int, size: int, taps: int, up: int = 1, down: int = 1) -> Expected:
    """Depthwise convolution and upfirdn2d, half types: each place read once, each result written once."""
    results = batch * channels * (size * up // down) ** 2
    moved = HALF * (batch * channels * size * size + results)
    return slowest(d, Work(2 * results * taps * taps / up**2, moved), d.flops)


# family, case, how it is computed
CASES: tuple[tuple[str, str, Callable[[Device], Expected]], ...] = (
    ("pointwise", "gelu 4096x4096", lambda d: activation(d, 4096 * 4096)),
    ("norm", "layer_norm 8192x4096", lambda d: rows(d, 8192, 4096, tensors=2)),
    ("norm", "layer_norm 8192x4096, backward", lambda d: rows(d, 8192, 4096, tensors=3)),
    ("softmax", "softmax 8192x4096", lambda d: rows(d, 8192, 4096, tensors=2, exps=1)),
    ("attention", "B2 H32 L4096 D64", lambda d: attention(d, 2, 32, 4096, 64)),
    ("attention", "B2 H16 L4096 D128", lambda d: attention(d, 2, 16, 4096, 128)),
    ("attention", "B2 H16 L4096 D128 causal", lambda d: attention(d, 2, 16, 4096, 128, True)),
    ("attention", "B2 H16 L4096 D128, backward", lambda d: attention_backward(d, 2, 16, 4096, 128)),
    ("attention", "decode B8 H64/8 S8192 D128", lambda d: decode(d, 8, 64, 8, 8192, 128)),
    ("attention", "decode B1 H64/8 S8192 D128", lambda d: decode(d, 1, 64, 8, 8192, 128)),
    *(
        (
            "recurrent", f"{name} T1024 B{batch} H{hidden}{', backward' if back else ''}",
            lambda d, gates=gates, batch=batch, hidden=hidden, back=back: recurrence(d, 1024, batch, hidden, gates, back),
        )
        for name, gates in (("LSTM", 4), ("GRU", 3))
        for batch, hidden in ((1, 256), (16, 512), (16, 1024), (64, 1024))
        for back in (False, True)
    ),
    ("conv", "depthwise 3x3, 32x192x56x56", lambda d: windows(d, 32, 192, 56, 3)),
    ("conv", "depthwise 7x7, 32x192x56x56", lambda d: windows(d, 32, 192, 56, 7)),
    ("gan", "upfirdn2d 4x4 up 2, 16x256x64x64", lambda d: windows(d, 16, 256, 64, 4, up=2)),
    ("gan", "upfirdn2d 4x4 down 2, 16x256x128x128", lambda d: windows(d, 16, 256, 128, 4, down=2)),
)  # fmt: skip


def section(device: Device = H200) -> str:
    """Markdown, for docs/performance.md."""
    lines = [
        f"## Expected of CUDA C++ on {device.name}\n",
        "Computed by `benchmarks/expected.py`, not measured: the kernels of csrc/cuda, half types, by their bytes, FLOPs and"
        " exponentials over what such a GPU reaches, the slowest deciding, with the latency of launches and of barriers between"
        " steps added. A recurrence is its steps alone, without its products with x.\n",
        "| family | case | expected | by |",
        "| --- | --- | --- | --- |",
    ]
    for family, case, of in CASES:
        expected = of(device)
        lines.append(f"| {family} | {case} | {seconds(expected.seconds)} | {expected.kind} |")
    return "\n".join(lines) + "\n"
