"""Compiles every kernel that smoke.py launches, without a GPU, so that the minutes with one go to running them.

    python -m tools.gpu.compile [OPERATION ...] [--jobs N] [--arch 90] [--archive FILE.tar.xz]

into TRITON_CACHE_DIR. The cache serves another machine when Triton's wheel, the Python version, the kernels' sources and the
absolute path of the folder are the same there: `make gpu-cache` makes it, `make gpu` unpacks it (docs/gpu.md).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

from tools.gpu import ROOT
from tools.gpu.environment import CACHE, with_site


def compile_share(share: int, shares: int, arch: int, operations: list[str]) -> int:
    """In a process of its own: goes through every case on tensors whose memory is never looked at, and compiles what falls
    to this share. Returns how many kernels there are."""
    os.environ.pop("TRITON_INTERPRET", None)
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from benchmarks.aot import Driver

    driver.set_active(Driver(arch))
    seen: set[str] = set()
    launch = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        binder = self.device_caches[arch][4]
        _, specialization, options = binder(*args, **kwargs, debug=False, instrumentation_mode="")
        key = f"{self.__name__} {specialization} {options}"
        if key not in seen:
            seen.add(key)
            if zlib.crc32(key.encode()) % shares == share:
                launch(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only

    import pyflash
    from pyflash.kernels import tuning
    from pyflash.ops.core import backends

    backends.DEVICES["triton"], backends.MISSING["triton"] = ("cuda", "cpu"), ""
    tuning.arch = lambda device: tuning.arch_of(divmod(arch, 10))
    torch.randn = lambda *shape, **_: torch.empty(*shape)  # nothing is read, and 64M random numbers take a second
    with pyflash.use_backend("triton"):
        for name, run in cases(operations):
            try:
                run()
            except Exception as failure:
                print(f"{name}: {type(failure).__name__}: {failure}"[:300], file=sys.stderr, flush=True)
    return len(seen)


def cases(operations: list[str]):
    """(name, a call that goes through the launchers of one case)."""
    import torch

    from benchmarks.check import outputs_of
    from tools.gpu import smoke

    for work in smoke.plan(operations, small=False):

        def run(work=work):
            dtype = getattr(torch, work.case.dtype)
            differentiable = work.mode != "forward"
            inputs = [x.to(dtype) if x.is_floating_point() else x for x in work.operation.inputs(work.case)]
            function = work.operation.pyflash(work.case)
            leaves = [x.requires_grad_(differentiable) for x in inputs if x.is_floating_point()]
            if isinstance(function, torch.nn.Module):
                function.to(dtype).train(differentiable)
                leaves += list(function.parameters()) if differentiable else []
            with torch.set_grad_enabled(differentiable):
                outputs = outputs_of(function(*inputs))
                if differentiable:
                    torch.autograd.grad(outputs, leaves, [torch.empty_like(out) for out in outputs], allow_unused=True)

        yield work.name, run


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tools.gpu.compile", description=__doc__.split("\n")[0])
    options.add_argument("operations", nargs="*", help="default: all of them")
    options.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1))
    options.add_argument("--arch", type=int, default=90, help="compute capability, without its dot (90)")
    options.add_argument("--archive", type=Path, help="also write the cache as one file: a tar.xz")
    options.add_argument("--share", help=argparse.SUPPRESS)
    return options


def main() -> int:
    options = parser().parse_args()
    if options.share:
        share, shares = map(int, options.share.split("/"))
        count = compile_share(share, shares, options.arch, options.operations)
        if share == 0:
            print(f"{count} kernels", flush=True)
        return 0
    # Only what is launched of a kernel is kept: the cache is a tenth as large.
    variables = {"TRITON_STORE_BINARY_ONLY": "1", "OMP_NUM_THREADS": "1"} | with_site(os.environ)
    variables.setdefault("TRITON_CACHE_DIR", str(CACHE))
    cache = Path(variables["TRITON_CACHE_DIR"])
    start = time.monotonic()
    command = [sys.executable, "-m", "tools.gpu.compile", *options.operations, "--arch", str(options.arch), "--share"]
    workers = [
        subprocess.Popen([*command, f"{i}/{options.jobs}"], cwd=ROOT, env=variables) for i in range(options.jobs)
    ]
    failed = [worker.wait() for worker in workers if worker.wait()]
    print(f"compiled for sm_{options.arch} in {time.monotonic() - start:.0f} s, in {cache}", flush=True)
    if options.archive:
        options.archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(options.archive, "w:xz") as archive:
            archive.add(cache, arcname=str(cache.relative_to("/")))
        print(f"{options.archive}: {options.archive.stat().st_size / 2**20:.1f} MiB")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
