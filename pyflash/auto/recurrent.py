"""Recurrent layers and cells: what `auto` leaves to torch where this processor's table (tables/) says nothing.

Each constant names the rows of the benchmark `rnn` that set it; the numbers are in benchmarks/results.
"""

from typing import NamedTuple

import torch

from pyflash.auto import MEASURED, NO_TABLE, SMALL, processor, tables

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}  # of every cell; the one place that says so

# For a few steps; below it Python outweighs the kernel. GRUCell and RNNCell T1, training; GRU T2.
MIN_FLOPS = 1 << 19
# torch's GRU and RNN pay for every step, and its LSTM, which rearranges its weights, for every call. LSTM T1, GRU T2.
FEW_STEPS = 4
# oneDNN's backward of a narrow LSTM is nearer to the peak. LSTM T128 B64 H64, training.
MANY_ROWS, NARROW = 64, 64

# Weights of a cell from which one step of one row is faster, though every call proves that its packed weights are still
# those of the module: LSTMCell, GRUCell and RNNCell T1 B1, H32 to H512, one and two threads; gated cells on the processors
# that were measured, and any cell elsewhere.
ROW_WEIGHTS = 1 << 21
GATED_ROW_WEIGHTS = {"zen4": 1 << 18, "zen5": 3 << 17}
# The same of a step of several rows, for LSTM and GRU; MIN_FLOPS decides below it. LSTMCell T1 B2 H64, B16 H32.
ROWS_WEIGHTS = 1 << 14

# A training step stores the activated gates, 4 T B H values, rather than compute them again in its backward: no
# cell was measured where that was slower. A caller short of memory says save_gates=False.
SAVES_GATES = True


class Size(NamedTuple):
    """A call in numbers: a stack of layers, or one step of a cell (steps = 1, module "cell")."""

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
        is_ours = _is_cudas(size, dtype) if where.kernels == "cuda" else _is_tritons(ours, size, dtype)
        return "" if is_ours else "torch's cuDNN is faster"
    is_step = not size.training and size.steps == 1 and size.directions == 1
    if is_step and ours is None and size.module == "cell":
        return _rules_cell(where, size, dtype)
    if is_step and size.module == "layers" and not (is_onednn and dtype == torch.bfloat16):
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
        flops = 2 * size.steps * size.batch * GATES[size.cell] * size.hidden * columns
        if flops * size.layers * size.directions < MIN_FLOPS:
            return SMALL
    return ""


def _rules_cell(where: processor.Place, size: Size, dtype) -> str:
    """A step of a cell with gradients off. torch has no fast path for another type than float32."""
    weights, is_gated = GATES[size.cell] * size.hidden * (size.inputs + size.hidden), GATES[size.cell] > 1
    if dtype != torch.float32:
        return ""
    if size.batch == 1:
        is_ours = weights >= (GATED_ROW_WEIGHTS.get(where.family, ROW_WEIGHTS) if is_gated else ROW_WEIGHTS)
    else:
        is_ours = 2 * size.batch * weights >= MIN_FLOPS or (is_gated and weights >= ROWS_WEIGHTS)
    return "" if is_ours else SMALL


ON_CHIP = 128  # hidden units whose weights a program of Triton's keeps on the chip for all steps


def _is_tritons(ours: bool | None, size: Size, dtype) -> bool:
    """Rows T64 B64 of nvidia-h200. Of bfloat16 torch copies the weights in every call; from H256 on the kernels are faster,
    too, but the host launches every step. float16, whose weights torch keeps in one piece, was not measured."""
    if ours is None:
        ours = size.module == "layers" and size.steps > 1 and dtype == torch.bfloat16 and size.hidden <= ON_CHIP
    return ours or size.projected


# What CUDA C++ was timed at: 64 steps of 64 rows, H64 to H512, and 1024 steps of 1 to 64 rows, H128 to H1024.
STEPS_TIMED, ROWS_TIMED, HIDDEN_TIMED = 64, 64, 1024
STEPPED_GRU = 256  # hidden units from which cuDNN's GRU in float16 walks step by step, but for one row


def _is_cudas(size: Size, dtype) -> bool:
    """nvidia-h200/2026-11-28-cuda-rnn.jsonl and -cuda-smoke.jsonl, times torch's speed, forward and training: bfloat16 1.24 to 6.4,
    which torch gives no persistent kernel; float16 GRU from H256 on 1.5 to 6.0, below 0.3 to 0.8, as LSTM in half of all places;
    float32 of 64 rows 0.3 to 0.9 and, of H256 and H512, 0.9 to 4.0, which says too little of others."""
    if size.module != "layers" or size.steps < STEPS_TIMED or size.batch > ROWS_TIMED or size.hidden > HIDDEN_TIMED:
        return False
    return dtype == torch.bfloat16 or (dtype == torch.float16 and size.cell == "gru" and size.hidden >= STEPPED_GRU)


TRITON_FIRST, CUDA_FIRST = ("triton", "cuda", "cpu"), ("cuda", "triton", "cpu")


def order(size: Size) -> tuple[str, ...]:
    """Which of two that are both faster than torch. The same rows: what Triton keeps on the chip of H64, but for LSTM's training, and
    of an RNN of H128, is 1.1 to 2.6 times as fast as CUDA C++; all else is 0.5 to 0.97."""
    if size.cell.startswith("rnn"):
        is_tritons = size.hidden <= ON_CHIP
    else:
        is_tritons = size.hidden <= ON_CHIP // 2 and not (size.cell == "lstm" and size.training)
    return TRITON_FIRST if is_tritons else CUDA_FIRST


rules = tables.remembered(decide)
