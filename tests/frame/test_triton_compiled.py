"""What the kernels of Linear, LayerNorm and the pointwise operations compile to on Hopper; no GPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

pytestmark = pytest.mark.triton

HERE = Path(__file__).parent


def compiled(*cases):
    # Not the cache that was carried to a GPU, in which kernels have no PTX beside them.
    left_out = "TRITON_INTERPRET", "TRITON_CACHE_DIR", "TRITON_STORE_BINARY_ONLY"
    env = {key: value for key, value in os.environ.items() if key not in left_out}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *filter(None, [env.get("PYTHONPATH")])])
    command = [sys.executable, str(HERE / "compiled.py"), *cases]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_products_move_16_bytes_and_keep_the_tensor_cores_busy():
    """Forward, both products of the backward, and the largest epilogue."""
    for label, kernels in compiled("linear").items():
        row = kernels["matmul"]
        assert row["narrow"] == 0 and row["wide"] > 8, label
        assert row["spill_bytes"] == row["serialised"] == 0, label
        assert row["LDGSTS"] > 8 and row["HMMA" if label == "linear/few rows" else "HGMMA"] > 0, label


def test_rows_of_any_width_neither_spill_nor_move_less_than_they_could():
    """65536 columns are walked in blocks: what is compiled does not grow with them."""
    rows = compiled("row_wise", "wide rows")
    kernels = {kernel for found in rows.values() for kernel in found}
    assert {"layer_norm_fwd", "layer_norm_bwd", "layer_norm_fwd_wide", "layer_norm_bwd_wide"} < kernels
    for label, found in rows.items():
        for kernel, row in found.items():
            assert row["spill_bytes"] == 0 and row["instructions"] < 1000, (label, kernel)
            # the last sum writes 16 columns a program
            assert row["narrow"] == 0 or kernel == "sum_programs", (label, kernel)
            assert row["wide"] > 0, (label, kernel)
            # a product added before it is rounded leaves something of dy weight - mean(dy weight) in a row of one element
            assert row["fused"] == 0 or not kernel.startswith("layer_norm_bwd"), (label, kernel)


def test_pointwise_operations_move_16_bytes_and_half_outputs_take_few_instructions():
    """At 26 instructions an element a multiprocessor of Hopper keeps up with its memory."""
    for label, found in compiled("pointwise").items():
        for row in found.values():
            assert row["narrow"] == row["spill_bytes"] == 0 and row["wide"] > 0, label
            if label != "pointwise/dropout":
                bytes_moved = 10 if label == "pointwise/gelu second backward" else 6
                assert row["instructions"] <= 8 * 32 * bytes_moved / 6, label
