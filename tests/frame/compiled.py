"""What launchers compile to on sm_90, without a GPU: `python compiled.py CASE ...` prints {case: {kernel: counts}} as JSON.

In a process of its own, because the tests' has chosen the interpreter. `narrow` counts accesses of global memory that move
2 bytes or fewer, `wide` those of 16.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

os.environ.pop("TRITON_INTERPRET", None)

import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks.aot import Driver, _measure
from pyflash.kernels import linear, tuning
from pyflash.kernels.norm import layer_norm
from pyflash.kernels.pointwise import activation, dropout

FORM = r"(?:ld|st|red)\.global[\w.:]*?\.(v[248]\.)?[bfsu](8|16|32|64)\b|cp\.async\.c[ag]\.[\w.:]+ \[[^]]*\], \[[^]]*\], (0x\w+)"


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def linear_case():
    rows, out_features, in_features = 8192, 4096, 1024
    x, weight, bias = empty(rows, in_features), empty(out_features, in_features), empty(out_features)
    y, preact = (empty(rows, out_features) for _ in range(2))
    yield "forward", lambda: linear.linear_fwd(x, weight, bias, "", 0.0, 0.0, False, y, preact)
    yield "gelu", lambda: linear.linear_fwd(x, weight, bias, "gelu", 0.0, 0.0, True, y, preact)
    yield "dgrad", lambda: linear.matmul(y, weight, x)
    yield "wgrad", lambda: linear.matmul(y.t(), x, weight)
    yield "few rows", lambda: linear.linear_fwd(x[:16], weight, bias, "", 0.0, 0.0, False, y[:16], preact)


def row_wise_case(cols=1024):
    x, residual, y, summed = (empty(4096, cols) for _ in range(4))
    weight, bias, dweight, dbias = (empty(cols) for _ in range(4))
    mean, rstd = (empty(4096, dtype=torch.float32) for _ in range(2))
    backward = y, x, summed, weight, mean, rstd, True, True, True, residual, dweight, dbias
    yield "forward", lambda: layer_norm.layer_norm_fwd(x, None, weight, bias, 1e-5, y, summed, mean, rstd)
    yield "residual", lambda: layer_norm.layer_norm_fwd(x, residual, weight, bias, 1e-5, y, summed, mean, rstd)
    yield "backward", lambda: layer_norm.layer_norm_bwd(*backward)


def pointwise_case():
    x, y = empty(1 << 20), empty(1 << 20)
    for name in ("gelu", "silu", "tanh"):
        yield name, lambda name=name: activation.activation_fwd(x, name, 0.0, 0.0, y)
    yield "gelu backward", lambda: activation.activation_bwd(x, x, "gelu", 0.0, 0.0, y)
    yield (
        "gelu second backward",
        lambda: activation.activation_bwd_bwd(x, x, x, "gelu", 0.0, 0.0, True, y, empty(1 << 20)),
    )
    yield "dropout", lambda: dropout.dropout(x, empty(1, dtype=torch.int64), 0.1, y)


CASES = {
    "linear": linear_case,
    "row_wise": row_wise_case,
    "wide rows": lambda: row_wise_case(65536),
    "pointwise": pointwise_case,
}


def counts(kernel):
    ptx = kernel.asm["ptx"]
    widths = [
        int(copied, 16) if copied else int((vector or "v1").strip("v.")) * int(bits) // 8
        for vector, bits, copied in re.findall(FORM, ptx)
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "narrow": sum(width <= 2 for width in widths),
        "wide": sum(width == 16 for width in widths),
        "fused": ptx.count("fma.rn"),
        **_measure(kernel, 90, log),
    }


def main(names):
    compiled = {}
    launch = JITFunction.run

    def only_compile(self, *args, grid, warmup, **kwargs):
        compiled[self.fn.__name__.lstrip("_")] = launch(self, *args, grid=grid, warmup=True, **kwargs)

    driver.set_active(Driver(90))
    JITFunction.run = only_compile
    tuning.arch = lambda device: "sm90"
    found = {}
    for name in names:
        for label, call in CASES[name]():
            compiled.clear()
            call()
            found[f"{name}/{label}"] = {kernel: counts(binary) for kernel, binary in compiled.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
