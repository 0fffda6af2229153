"""One step of a recurrent cell on CPU tensors, gradients off: what a stream costs a token, so with little Python."""

from __future__ import annotations

from functools import lru_cache

import torch

from pyflash import _cpu
from pyflash.ops._native import DTYPES
from pyflash.ops._native.linear import _workspace
from pyflash.ops._native.rnn import CELLS, _Problem, find_kept


@lru_cache(maxsize=256)
def _workspace_bytes(shape, threads, isa):
    return _cpu.rnn_sizes(shape, shape[1], False, threads)[1]


def rnn_step(x, h, c, weights, cell, h_n, c_n):
    (batch, inputs), hidden, dtype = x.shape, h.shape[1], DTYPES[x.dtype]
    shape, threads, isa = (
        (1, batch, inputs, hidden, hidden, 1, CELLS[cell], False, dtype),
        torch.get_num_threads(),
        _cpu.isa(),
    )

    def pack():
        return _Problem(x.unsqueeze(0), h.unsqueeze(0), weights, None, None, cell, False).panels(False, threads, True)

    workspace = _workspace(_workspace_bytes(shape, threads, isa), "rnn")
    given = (
        batch, x.data_ptr(), x.stride(0), h.data_ptr(), 0 if c is None else c.data_ptr(), h_n.data_ptr(),
        c_n.data_ptr(), workspace.data_ptr(), threads,
    )  # fmt: skip
    kept = find_kept(shape, weights, pack)  # held: another thread may drop it from the cache
    while not kept.native.step(*given):
        kept = find_kept(shape, weights, pack, True)
