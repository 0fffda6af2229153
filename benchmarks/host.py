"""What a call takes the host, without a GPU: everything up to the launch, which a stub takes and does nothing with.

    python -m benchmarks.host [--json FILE]

On tensors of the CPU, with a driver that names sm_90 and never reaches one. `plain` is a launch as Triton makes it, `cached`
one of kernels/launch.py; both through the public function, a kernel's compilation left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

os.environ.pop("TRITON_INTERPRET", None)  # before a kernel module is imported

import torch

ROUNDS, CALLS = 15, 100
STEPS = 16  # of a recurrent layer


class Launches(list):
    """What was launched: (function, grid, stream, arguments)."""

    keep = True


class StubDriver:
    """A device of compute capability 9.0 that does nothing; which one is current, and its stream, can be set."""

    def __init__(self, launches: Launches):
        self.launches, self.device, self.stream, self.loaded = launches, 0, 7, 0
        self.utils = self

    def get_current_device(self):
        return self.device

    def get_current_stream(self, device):
        return self.stream

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_properties(self, device):
        return {"max_shared_mem": 227 * 1024}

    def load_binary(self, name, kernel, shared, device):
        self.loaded += 1
        return self.loaded, self.loaded, 0, 0, 1024

    def launcher_cls(self, source, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments):
            if self.launches.keep:
                self.launches.append((function, (x, y, z), stream, arguments))

        return launch


@contextlib.contextmanager
def stubbed() -> Iterator[StubDriver]:
    """The Triton backend on CPU tensors, launching nothing; in a process where kernels are not interpreted."""
    from triton.runtime import driver

    import pyflash
    from pyflash.kernels import tuning
    from pyflash.ops.core import backends

    stub = StubDriver(Launches())
    devices, missing, arch = backends.DEVICES["triton"], backends.MISSING["triton"], tuning.arch
    driver.set_active(stub)
    backends.DEVICES["triton"], backends.MISSING["triton"] = ("cuda", "cpu"), ""
    tuning.arch = lambda device: "sm90"
    try:
        with pyflash.use_backend("triton"):
            yield stub
    finally:
        backends.DEVICES["triton"], backends.MISSING["triton"], tuning.arch = devices, missing, arch
        driver._active = None


def calls() -> dict[str, Callable[[], object]]:
    """One call a public function, of a size that makes no difference."""
    import pyflash.functional as PF
    import pyflash.nn as nn

    x, weight, bias, rows = torch.randn(16, 64), torch.randn(64, 64), torch.randn(64), torch.randn(16, 64)
    q = torch.randn(1, 2, 16, 64)
    x, weight, bias, rows, q = (tensor.bfloat16() for tensor in (x, weight, bias, rows, q))
    token, lengths = torch.randn(1, 2, 1, 64).bfloat16(), torch.full((1,), 16, dtype=torch.int32)
    steps, lstm = torch.randn(STEPS, 4, 256).bfloat16(), nn.LSTM(256, 256).bfloat16()  # above 128 units a launch a step
    image = torch.randn(1, 64, 8, 8).bfloat16().to(memory_format=torch.channels_last)
    filters = torch.randn(64, 64, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    leaf = x.clone().requires_grad_()

    def training():
        return torch.autograd.grad(PF.linear(leaf, weight, bias), leaf, rows)

    return {
        "gelu": lambda: PF.gelu(x),
        "dropout": lambda: PF.dropout(x, 0.1),
        "linear": lambda: PF.linear(x, weight, bias),
        "linear, forward and backward": training,
        "conv2d": lambda: PF.conv2d(image, filters, bias, padding=1),
        "layer_norm": lambda: PF.layer_norm(x, (64,), bias, bias),
        "scaled_dot_product_attention": lambda: PF.scaled_dot_product_attention(q, q, q),
        "attention_decode": lambda: PF.attention_decode(token, q, q, lengths),
        "attention_weights": lambda: PF.attention_weights(q, q),
        f"LSTM of {STEPS} steps": lambda: lstm(steps),
    }


def microseconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS * 1e6


@contextlib.contextmanager
def plain_launches() -> Iterator[None]:
    """Every launch takes Triton's own way."""
    from pyflash.kernels import launch

    was = launch._Cached.is_watched
    launch._Cached.is_watched = lambda self: True
    try:
        yield
    finally:
        launch._Cached.is_watched = was


def measure() -> list[dict]:
    """Rounds of both kinds in turn; medians."""
    rows = []
    with stubbed() as stub, torch.no_grad():
        stub.launches.keep = False
        for name, call in calls().items():
            with torch.set_grad_enabled("backward" in name):
                call()
                plain, cached = [], []
                for _ in range(ROUNDS):
                    with plain_launches():
                        plain.append(microseconds(call))
                    cached.append(microseconds(call))
            rows.append({"call": name, "plain_us": round(median(plain), 1), "cached_us": round(median(cached), 1)})
    return rows


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.split("\n")[0])
    options.add_argument("--json", type=Path)
    options = options.parse_args()
    rows = measure()
    print("| call | plain launch, us | cached launch, us |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {row['call']} | {row['plain_us']:.1f} | {row['cached_us']:.1f} |")
    if options.json:
        options.json.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
