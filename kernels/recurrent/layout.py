"""What a call of the recurrent layers works on: its sizes, the orders of steps and rows, the weights of all directions."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.recurrent.gates import locate, rows_of


@launch.cached
@triton.jit(do_not_specialize=["length", "batch", "positions", "t_stride", "b_stride"])
def _gather(
    source_ptr, initial_ptr, out_ptr, steps_ptr, offsets_ptr, rows_ptr, source_stride, length, batch, positions,
    t_stride, b_stride, COLS: tl.constexpr, BACK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The source's row of each step (BACK = 0), or of the step before in the direction's time (BACK = 1), which is the
    initial state at the first; zero past the end of a row. Grid (length * tiles of the batch, D).

    Args:
        source_ptr: [positions, D, COLS], rows source_stride apart. initial_ptr: [D, batch, COLS], for BACK.
        out_ptr: [D, positions, COLS]. steps_ptr, offsets_ptr: [length] int64; rows_ptr: [batch] int64; each may be None.
    """
    tiles = tl.cdiv(batch, BLOCK_M)
    t = tl.program_id(0) // tiles
    d = tl.program_id(1).to(tl.int64)
    offs_m = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = rows_of(offs_m, rows_ptr, batch)
    active, position, _ = locate(t, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride)
    before, origin, _ = locate(
        t + BACK * tl.where(d == 0, -1, 1), offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
    )  # fmt: skip
    mask_out = active
    if offsets_ptr is None:
        mask_out = offs_m < batch
    for first in range(0, COLS, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = (offs_n < COLS)[None, :]
        ptrs = source_ptr + origin[:, None] * source_stride + d * COLS + offs_n[None, :]
        tile = tl.load(ptrs, mask=(active & before)[:, None] & mask_n, other=0.0)  # [BLOCK_M, BLOCK_N]
        if BACK:
            ptrs = initial_ptr + (d * batch + rows)[:, None] * COLS + offs_n[None, :]
            initial = tl.load(ptrs, mask=(active & (before == 0))[:, None] & mask_n, other=0.0)  # [BLOCK_M, BLOCK_N]
            tile = tl.where(before[:, None], tile, initial)
        out_ptrs = out_ptr + (d * positions + position)[:, None] * COLS + offs_n[None, :]
        tl.store(out_ptrs, tile, mask=mask_out[:, None] & mask_n)


class Weights(NamedTuple):
    """The weights of all D directions, G gates of H units; those stacked are a view where there is one direction."""

    w_ih: list  # D of [G * H, I]
    w_hh: torch.Tensor  # [D, G * H, H]
    b_ih: list  # D of [G * H], or of None
    b_hh: torch.Tensor | None  # [D, G * H]

    @property
    def gates(self) -> int:
        return self.w_hh.shape[1] // self.w_hh.shape[2]


def stacked(weights, directions):
    each = len(weights) // directions
    if each not in (2, 4):
        raise NotImplementedError("pyflash: triton has no recurrent kernel with a projection")

    def of(i):
        return [weights[d * each + i].contiguous() for d in range(directions)]

    def stack(tensors):
        return tensors[0].unsqueeze(0) if directions == 1 else torch.stack(tensors)

    has_bias = each == 4
    return Weights(of(0), stack(of(1)), of(2) if has_bias else [None] * directions, stack(of(3)) if has_bias else None)


class Layout:
    """Sizes of a call and the tensors that say which row runs when, as the kernels take them."""

    def __init__(self, x, h_0, rows, steps, batch_first):
        self.directions, self.batch, self.hidden = h_0.shape
        self.is_packed = x.dim() == 2
        self.offsets = self.steps = self.rows = None
        if steps is not None:
            self.length = steps.shape[0]
            if self.is_packed:  # PackedSequence keeps them on the CPU
                self.offsets = (steps.cumsum(0) - steps).to(x.device, non_blocking=True)
            self.steps = steps.to(x.device, non_blocking=True)
            self.rows = None if rows is None else rows.to(x.device, non_blocking=True)
        else:
            self.length = x.shape[1 if batch_first else 0]
        self.positions = x.shape[0] if self.is_packed else self.length * self.batch
        self.strides = (1, self.length) if batch_first else (self.batch, 1)
        self.is_time_first = self.is_packed or not batch_first
        self.ragged = self.steps, self.offsets, self.rows
        self.sizes = self.length, self.batch, self.positions, *self.strides

    def flat(self, x):
        """[positions, features]; a view where strides allow."""
        return x.reshape(self.positions, x.shape[-1])

    def empty(self, like, *shape, dtype=None):
        return like.new_empty(self.directions, self.positions, *shape, dtype=dtype)

    def gather(self, source, initial):
        """`source` [positions, D * cols] as [D, positions, cols], the step before each (the initial state at first); or,
        without `initial`, of each step, and zero past the end of a row."""
        directions = 1 if initial is None else self.directions
        cols = source.shape[1] // directions
        out = source.new_empty(directions, self.positions, cols)
        block_m, block_n = 16, min(128, max(16, triton.next_power_of_2(cols)))
        _gather[(self.length * launch.cdiv(self.batch, block_m), directions)](
            source, initial, out, *self.ragged, source.stride(0), *self.sizes, COLS=cols, BACK=int(initial is not None),
            BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
        return out
