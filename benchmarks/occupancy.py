"""How many blocks of a kernel a multiprocessor holds at once, from what the compiler says of it: no GPU is asked."""

from __future__ import annotations

from typing import NamedTuple


class Multiprocessor(NamedTuple):
    shared: int  # KB, of all its blocks
    warps: int
    blocks: int


# By compute capability (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability").
LIMITS = {
    80: Multiprocessor(164, 64, 32),
    86: Multiprocessor(100, 48, 16),
    89: Multiprocessor(100, 48, 24),
    90: Multiprocessor(228, 64, 32),
    100: Multiprocessor(228, 64, 32),
    120: Multiprocessor(100, 48, 24),
}
# The same of all of them. Each scheduler has a quarter of the registers, for the warps that it is given.
SCHEDULERS, REGISTERS = 4, 65536
OF_SYSTEM = 1024  # bytes of shared memory that it takes of each block


def blocks(arch: int, registers: int, shared: int, threads: int) -> int:
    """
    Args:
        registers: of a thread; they go by 8. shared: bytes of a block, static and dynamic. threads: of a block.
    """
    of, warps = LIMITS[arch], -(-threads // 32)
    registers = max(-(-registers // 8) * 8, 8)
    by_registers = REGISTERS // SCHEDULERS // (32 * registers) * SCHEDULERS // warps
    by_shared = of.shared * 1024 // (-(-shared // 128) * 128 + OF_SYSTEM)
    return min(by_registers, by_shared, of.warps // warps, of.blocks)


def share(arch: int, registers: int, shared: int, threads: int) -> float:
    """Of the warps that a multiprocessor can hold, those that are there: CUDA's occupancy."""
    return blocks(arch, registers, shared, threads) * -(-threads // 32) / LIMITS[arch].warps
