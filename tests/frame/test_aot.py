"""The committed ahead-of-time table: what it promises, and that the kernels still compile to it.

Compilation for sm_80 and sm_90 needs no GPU. Where kernels changed since the table was written, the rows that matter are
compiled again; `python -m benchmarks inspect` writes the table.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks import aot, aot_cases

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
import triton

from pyflash.kernels import tuning

TABLE = json.loads(aot.TABLE.read_text())
ROWS = TABLE["rows"]

# (what a promise is about, rows it holds for)
ATTENTION = [
    f"sm{arch}/attention/{dtype}/{head_dim}/attention_{kernel}"
    for arch in (80, 90)
    for dtype in ("bfloat16", "float32")
    for head_dim in (64, 128)
    for kernel in ("fwd", "bwd_dq", "bwd_dkdv")
]
ATTENTION += [name.replace("/attention_", "/full/attention_") for name in ATTENTION if "bfloat16" in name]  # not causal
WEIGHTS = [
    f"sm{arch}/attention_weights/{label}/attention_weights_{kernel}"
    for arch in (80, 90)
    for label in (
        "bfloat16/64",
        "bfloat16/128",
        "bfloat16/64/extras",
        "bfloat16/128/extras",
        "float32/64",
        "float32/128",
    )
    for kernel in ("fwd", "bwd_dq", "bwd_dk")
]
RECURRENT = [
    f"sm{arch}/recurrent/{cell}/{dtype}/{hidden}/rnn_{kernel}"
    for arch in (80, 90)
    for cell, dtype, hidden in aot_cases.RECURRENT
    for kernel in ("fwd", "bwd")
]
LINEAR = [
    f"sm{arch}/linear/bfloat16/{kind}/matmul" for arch in (80, 90) for kind in ("forward", "dgrad", "wgrad", "gelu")
]
CONV = [name for name in ROWS if "/conv/" in name]
APART = ("contiguous", "stem", "groups")  # convolutions whose neighbours in a sum are not neighbours in memory
OTHER = [aot.TABLE.with_name("aot-3.6.json")]  # of another Triton than the installed one
TABLES = {"installed": ROWS} | {path.stem: json.loads(path.read_text())["rows"] for path in OTHER if path.exists()}
# Where ptxas waits for every product of a warp group. A bias or dropout leaves too few registers.
FEW_REGISTERS_LEFT = ("bias", "dropout", "extras")
MEASURED_SPILL = 128  # bytes of a thread: dk and dv of D64 and D128 win 1.23 and 1.11 times with some on an H200
SHARED_MEMORY = {"sm80": 163, "sm86": 99, "sm90": 227, "sm100": 227}  # KB a block may take


def test_what_is_compiled_without_a_word_is_short():
    compiled = [name for name in ROWS if name.rsplit("/", 1)[0] in aot.SHORT]
    assert set(aot.SHORT) <= set(aot.cases()) and len(compiled) <= 190
    kernels = {name.rsplit("/", 1)[1] for name in compiled}
    assert kernels == {name.rsplit("/", 1)[1] for name in ROWS}


@pytest.mark.parametrize("name", [*ATTENTION, *CONV, *WEIGHTS, *RECURRENT])
def test_what_is_promised_does_not_spill(name):
    row = ROWS[name]
    if is_measured(name):
        assert row["spill_bytes"] <= MEASURED_SPILL
    else:
        assert (row["spill_bytes"], row["LDL"], row["STL"]) == (0, 0, 0)


def is_measured(name: str) -> bool:
    """Is the kernel's row the fastest of those that were measured on a device (kernels/tuned)?"""
    arch, _, dtype, head_dim, *_, kernel = name.split("/")
    width = "half" if dtype == "bfloat16" else dtype
    return f"{kernel}/{width}/{head_dim}/plain" in tuning.tuned(arch)


def test_half_products_use_the_tensor_cores():
    for name in (name for name in (*ATTENTION, *WEIGHTS) if "bfloat16" in name and "extras" not in name):
        assert ROWS[name]["HGMMA" if name.startswith("sm90") else "HMMA"] > 0
    for name in (name for name in CONV if "bfloat16" in name and name.rsplit("/", 1)[1] in ("conv", "weight_grad")):
        assert ROWS[name]["HGMMA" if name.startswith("sm90") else "HMMA"] > 0
    for name in (name for name in RECURRENT if "bfloat16" in name):  # 16 or 32 rows, fewer than HGMMA takes
        assert ROWS[name]["HMMA"] > 0


def test_float32_products_are_ieee():
    names = [name for name in ROWS if "float32" in name]
    assert names and all(ROWS[name]["TF32"] == ROWS[name]["HMMA"] == ROWS[name]["HGMMA"] == 0 for name in names)


@pytest.mark.parametrize("table", TABLES)
def test_shared_memory_suffices(table):
    for name, row in TABLES[table].items():
        assert row["shared"] <= SHARED_MEMORY[name.split("/")[0]] * 1024, name


@pytest.mark.parametrize("table", TABLES)
def test_half_types_move_more_than_one_element_at_a_time(table):
    """A thread's load or store of two bytes in the main loop: the compiler was not told that rows begin at multiples."""
    rows = TABLES[table]
    rowwise = [name for name in rows if any(f"/{case}/" in name for case in ("layer_norm", "rms_norm", "row_wise"))]
    names = [name for name in (*LINEAR, *ATTENTION, *WEIGHTS, *rowwise) if "bfloat16" in name]
    names += [name for name in rows if "/conv/" in name and not any(f"/{word}" in name for word in APART)]
    assert not {name: rows[name]["narrow"] for name in names if rows[name]["narrow"]}


@pytest.mark.parametrize("table", TABLES)
def test_products_of_a_warp_group_overlap(table):
    rows = TABLES[table].items()
    found = [
        name for name, row in rows if row["serialised"] and not any(f"/{word}" in name for word in FEW_REGISTERS_LEFT)
    ]
    assert not found


@pytest.mark.parametrize("table", TABLES)
def test_wide_rows_do_not_spill(table):
    names = [name for name in TABLES[table] if "/layer_norm/" in name]
    assert {name.split("/")[3] for name in names} == {"8192", "16384", "32768"}
    names += [name for name in TABLES[table] if "/rms_norm/" in name]
    assert all(TABLES[table][name]["spill_bytes"] == 0 for name in names)


def test_every_case_is_in_the_table():
    assert {name.rsplit("/", 1)[0] for name in ROWS} == set(aot.cases())


def test_narrow_accesses_are_counted_in_loops():
    code = """
        /*0000*/ LDG.E.U16 R0, desc[UR4][R2.64] ;
.L_x_1:
        /*0010*/ LDG.E.U16.CONSTANT R0, desc[UR4][R2.64] ;
        /*0020*/ LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/ @P0 BRA `(.L_x_2) ;
        /*0040*/ STG.E.U16 desc[UR4][R2.64], R0 ;
        /*0050*/ @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/ STG.E.U16 desc[UR4][R2.64], R0 ;
"""
    assert len(aot.NARROW.findall(code)) == 4 and aot._narrow(code) == 2
    edge = ".L_x_8:\n HMMA.16816 R0 ;\n LDG.E.U16 R0 ;\n BRA `(.L_x_8) ;\n"
    assert aot._narrow(code + edge) == 1 and aot._narrow(edge + edge.replace("x_8", "x_9").replace(".U16", ".128")) == 0


@pytest.mark.slow
def test_every_triton_has_its_table():
    assert aot.table_of("3.7.1") == aot.TABLE and aot.table_of("3.6.0").name == "aot-3.6.json"
    assert json.loads(aot.TABLE.read_text())["triton"].startswith(aot.INSTALLED)
    command = [sys.executable, "-m", "benchmarks", "inspect", "--triton", "nowhere"]
    done = subprocess.run(command, cwd=aot.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "holds no folder triton" in done.stderr


def test_the_hash_is_of_every_kernel(tmp_path, monkeypatch):
    (tmp_path / "kernels" / "family").mkdir(parents=True)
    monkeypatch.setattr(aot, "ROOT", tmp_path)
    before = aot.source_hash()
    (tmp_path / "kernels" / "family" / "kernel.py").write_text("x = 1")
    assert aot.source_hash() != before


def compile_again(*names):
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks", "inspect", "--check", *names]
    return subprocess.run(command, cwd=aot.ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_the_table_is_current():
    if TABLE["triton"] != triton.__version__:
        pytest.skip(f"the table is of triton {TABLE['triton']}")
    if TABLE["sources"] == aot.source_hash():
        return
    result = compile_again("sm80/attention/bfloat16/128/full", "sm90/attention/bfloat16/64/full")
    assert result.returncode == 0, result.stdout + result.stderr
