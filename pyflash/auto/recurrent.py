"""Recurrent layers: what `auto` leaves to torch, and whether a training step stores the gates or computes them again.

Two Zen 4 cores, float32, times torch's speed (benchmarks rnn): T128 H256, B32 and B1: GRU 1.7 and 5 forward, 1.7 and 13
in training; LSTM 1.05 and 1.45, 1.2 and 1.3; RNN 1.8 and 3.9, 1.6 and 10. LSTM in training with 64 rows: H64 0.9, H256
1.07, H512 1.1, H1024 1.04, with a third of torch's saved bytes. One step with gradients off, H64 and H256: LSTMCell 1.0
and 1.7, GRUCell 1.1 and 1.7, RNNCell 0.8 and 0.9 (by way of us, torch's own 0.7), nn.LSTM 3.5 and 4 to 9, nn.GRU 1.8 and
2.1, nn.RNN 1.4; in training, where the weights are packed for it: cells 0.5 to 1.0
at H64 to H1024 and B1 to B128, nn.GRU 0.5 to 0.9, nn.RNN 0.4 to 0.8, nn.LSTM 1.4; two steps: nn.GRU 1.1 to 1.6. Half
types and float64 on one busy core: LSTM in bfloat16 0.6 (B16) and 0.9 (B1), in float16 7.0 and 3.9; GRU in bfloat16 1.1
and 3.5; all cells in float64 1.0 to 1.9.
"""

from typing import NamedTuple

import torch

from pyflash.auto import MEASURED, NO_TABLE, SMALL, processor, tables

MIN_FLOPS = 1 << 19  # of a few steps; below it Python outweighs the kernel
FEW_STEPS = 4  # torch's GRU and RNN pay for every step, and its LSTM, which rearranges its weights, for every call
MANY_ROWS, NARROW = 64, 64  # oneDNN's backward of a narrow LSTM is nearer to the peak
GATES = {"lstm": 4, "gru": 3}


# A training step stores the activated gates, 4 T B H values, rather than compute them again in its backward: no
# cell was measured where that was slower. A caller short of memory says save_gates=False.
SAVES_GATES = True


class Size(NamedTuple):
    """Of a call: a stack of layers, or one step of a cell (steps = 1, module "cell")."""

    cell: str  # lstm, gru, rnn_tanh, rnn_relu
    module: str  # "layers" or "cell"
    steps: int
    batch: int
    inputs: int
    hidden: int
    layers: int
    directions: int
    projected: bool
    ragged: bool  # packed, or with lengths
    training: bool  # gradients are recorded


def decide(where: processor.Place, size: Size, dtype) -> str:
    """Why torch is to be preferred; empty where a kernel of ours is."""
    is_onednn = size.cell == "lstm" and size.module == "layers" and not size.projected and not size.ragged
    kind = f"{size.cell.removesuffix('_tanh').removesuffix('_relu')} {size.module}"
    mode = "training" if size.training else "inference"
    ours = None
    if not (size.projected or size.ragged):  # torch's is slow there: its kernel takes neither
        # A stack of layers, or of directions, is so many calls of one, to us and to torch.
        ours = tables.ours(where, "rnn", kind, dtype, mode, (size.steps, size.batch, size.hidden))
    if where.is_gpu:
        return _rules_gpu(ours, size, dtype)
    is_step = not size.training and size.steps == 1 and size.directions == 1
    if is_step and not (is_onednn and dtype == torch.bfloat16):
        return ""  # ops/recurrent/stream.py, which costs less than finding out and calling torch
    if ours is not None:
        return "" if ours else MEASURED
    if is_onednn and dtype == torch.bfloat16 and (where.isa == "avx512_bf16" or where.family == "amx"):
        return "torch's oneDNN multiplies bfloat16 in hardware"
    if is_onednn and where.family not in processor.MEASURED_BY_HAND:
        return NO_TABLE
    if is_onednn and size.training and size.batch >= MANY_ROWS and size.hidden <= NARROW:
        return "narrow LSTM with many rows: torch's oneDNN is faster in training"
    if size.training and size.steps == 1 and not is_onednn:
        return "one step in training: packing the weights outweighs what the kernel gains"
    if size.steps < FEW_STEPS and not is_onednn:
        columns = size.inputs + size.hidden
        flops = 2 * size.steps * size.batch * GATES.get(size.cell, 1) * size.hidden * columns
        if flops * size.layers * size.directions < MIN_FLOPS:
            return SMALL
    return ""


ON_CHIP = 128  # hidden units whose weights a program of ours keeps on the chip for all steps


def _rules_gpu(ours: bool | None, size: Size, dtype) -> str:
    """On an H200, T64 B64, times cuDNN's speed: bfloat16, whose weights torch copies in every call, H64 and H128 2.2 to 9.4,
    H256 1.5 to 1.9 in kernels but 0.6 to 0.8 for the host, which launches every step; float32 0.04 to 0.16, H256 0.3 to 0.6.
    float16, whose weights torch keeps in one piece, was not measured."""
    if ours is None:
        ours = size.module == "layers" and size.steps > 1 and dtype == torch.bfloat16 and size.hidden <= ON_CHIP
        ours = ours or size.projected
    return "" if ours else "torch's cuDNN is faster"


rules = tables.remembered(decide)
