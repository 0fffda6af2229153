"""Recurrent layers: what `auto` leaves to torch, and whether a training step stores the gates or computes them again."""

from typing import NamedTuple


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


def rules(backend: str, size: Size, dtype) -> str:
    """Why torch is to be preferred; empty where a kernel of ours is."""
    return ""


def saves_gates(cell: str, dtype) -> bool:
    """Does a training step store activated gates for its backward (T * B * H * 4 values more), or compute them again?"""
    return True
