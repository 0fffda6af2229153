"""How many blocks of the CUDA C++ kernels a multiprocessor holds at once: what `python -m benchmarks inspect` says."""

import json

import pytest

from benchmarks import aot, occupancy, ptxas
from tools import cuda_kernels

pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    "arch, registers, shared, threads, blocks, limit",
    [
        (90, 168, 98304, 256, 1, "registers: 12 warps of 168"),
        (90, 104, 0, 32, 16, "registers: each of four schedulers has room for 4 warps of 104, and not 19 / 4"),
        (80, 64, 0, 128, 8, "registers"),
        (80, 32, 0, 1024, 2, "warps"),
        (86, 32, 0, 1024, 1, "warps: 48"),
        (86, 32, 50 * 1024, 128, 1, "shared memory: 1 KB of each block is the system's"),
        (90, 32, 56 * 1024, 128, 4, "shared memory, all of it"),
        (90, 32, 56 * 1024 + 1, 128, 3, "shared memory"),
        (86, 16, 0, 32, 16, "blocks"),
        (89, 16, 0, 32, 24, "blocks"),
        (120, 16, 0, 33, 24, "warps: two a block"),
        (100, 255, 0, 512, 0, "one block has more registers than there are"),
    ],
)
def test_blocks_of_a_multiprocessor(arch, registers, shared, threads, blocks, limit):
    assert occupancy.blocks(arch, registers, shared, threads) == blocks, limit
    assert (
        occupancy.share(arch, registers, shared, threads) == blocks * -(-threads // 32) / occupancy.LIMITS[arch].warps
    )


def test_tritons_table_goes_by_the_same_limits():
    rows = json.loads(aot.TABLE.read_text())["rows"]
    for name, row in rows.items():
        arch = int(name.partition("/")[0].removeprefix("sm"))
        assert row["blocks"] == occupancy.blocks(arch, row["registers"], row["shared"], 32 * row["warps"]), name


def test_every_kernel_is_resident_as_often_as_its_launch_bounds_promise():
    assert ptxas.Kernel._fields[1:] == cuda_kernels.COLUMNS
    for arch, family, found in ptxas.kernels():
        for name, kernel in found.items():
            assert kernel.threads % 32 == 0 and kernel.blocks >= kernel.promised >= 1, (arch, family, name, kernel)


def test_inspect_says_it_of_every_kernel():
    for arch, family, found in ptxas.kernels():
        said = list(ptxas.lines([f"cuda {family} "]))
        assert all("occupancy" in line for line in said)
        assert sum(line.endswith("%") and f" {arch} registers=" in line for line in said) == len(found)
    families = list(ptxas.lines())
    assert all("occupancy>=" in line for line in families)


PTX = """
.extern .shared .align 16 .b8 dynamic[];
.entry first(
	.param .u64 first_param_0
)
.maxntid 128, 1, 1
.minnctapersm 2
{
	mov.u64 	%rd1, dynamic;
}
.visible .entry second(
	.param .u64 second_param_0
)
.maxntid 96, 1, 1
{
	mov.u64 	%rd1, dynamics;
}
"""


def test_launch_bounds_are_read_from_ptx():
    assert cuda_kernels.bounds(PTX) == {"first": (128, 2, 1), "second": (96, 1, 0)}
