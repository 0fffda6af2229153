"""Cells and layers in one direction on CPU tensors, gradients off: what a stream costs a token, so with little Python."""

from __future__ import annotations

import weakref
from functools import lru_cache

import torch

from pyflash import _cpu
from pyflash.ops._native import DTYPES
from pyflash.ops._native.linear import _workspace
from pyflash.ops._native.rnn import CELLS, _Problem, find_kept

RECENT = 256  # layers whose packed weights are found by one look-up

_recent: dict[tuple, tuple] = {}  # what `_shape` says and where the weights lie -> (their versions, weak `Kept`)


@lru_cache(maxsize=1024)
def _shape(cell, steps, batch, inputs, hidden, dtype, threads, isa):
    """The shape of a layer as a `_Problem` has it, and the bytes of its workspace."""
    shape = (steps, batch, inputs, hidden, hidden, 1, CELLS[cell], False, DTYPES[dtype])
    return shape, _cpu.rnn_sizes(shape, steps * batch, False, threads)[1]


def _versions(weights):
    try:
        return [w._version for w in weights]
    except RuntimeError:  # tensors of inference mode have none
        return None


def _find(cell, shape, weights, threads, isa, is_renewed=False, may_lack_memory=True):
    """The `Kept` of these weights; None where one of them has no memory and may not."""
    places = [w.data_ptr() for w in weights]
    place = (isa, *shape[2:], *places)  # the same memory may serve layers of other shapes
    versions = _versions(weights)
    recent = None if is_renewed else _recent.get(place)
    if recent is not None and recent[0] == versions:
        kept = recent[1]()
        if kept is not None:
            return kept
    if not (may_lack_memory or all(places)):
        return None

    def pack():
        x, h = weights[0].new_empty(1, 1, shape[2]), weights[0].new_empty(1, 1, shape[3])
        return _Problem(x, h, weights, None, None, cell, False).panels(False, threads, True)

    kept = find_kept(shape, weights, pack, is_renewed)
    if all(places) and versions is not None:
        if len(_recent) >= RECENT:
            _recent.clear()
        _recent[place] = versions, weakref.ref(kept)
    return kept


def rnn_infer(cell, x, h, c, weights, layers, batch_first, y, h_n, c_n, may_lack_memory=False) -> bool:
    """Layers in one direction; False: a tensor has no memory.

    x, y: [steps, batch, features], or the other way round when `batch_first`. h, c, h_n, c_n: [layers, batch, hidden]; h
    and c None: zeros. Of one step all may be without steps and layers, and y None: h_n is it. All contiguous.
    may_lack_memory: it may, being empty.
    """
    threads, isa = torch.get_num_threads(), _cpu.isa()
    inputs, hidden, dtype = weights[0].shape[1], weights[1].shape[1], x.dtype
    if y is None:
        batch, steps = x.shape[0], 1
    else:
        steps, batch, _ = x.shape
        if batch_first:
            steps, batch = batch, steps
    step, row = (1, steps) if batch_first else (batch, 1)  # rows from one to the next
    x_at, h_at, c_at = x.data_ptr(), 0 if h is None else h.data_ptr(), 0 if c is None else c.data_ptr()
    if not (may_lack_memory or (x_at and (h is None or h_at) and (c is None or c_at))):
        return False
    h_n_at, c_n_at = h_n.data_ptr(), 0 if c_n is None else c_n.data_ptr()
    own, last = weights, layers - 1
    if last:
        each, state = len(weights) // layers, batch * hidden * x.element_size()
        between = [_workspace(steps * state, f"rnn_between_{i}") for i in range(min(last, 2))]
    for i in range(layers):
        shape, size = _shape(cell, steps, batch, inputs, hidden, dtype, threads, isa)
        workspace = _workspace(size, "rnn")
        if last:
            own = weights[i * each : (i + 1) * each]
        y_at = between[i % 2].data_ptr() if i < last else h_n_at if y is None else y.data_ptr()
        given = steps, batch, x_at, step, row, h_at, c_at, y_at, h_n_at, c_n_at, workspace.data_ptr(), threads
        # Held: another thread may drop it from the cache.
        kept = _find(cell, shape, own, threads, isa, False, may_lack_memory)
        while kept is not None and not kept.native.run(*given):
            kept = _find(cell, shape, own, threads, isa, True, may_lack_memory)
        if kept is None:
            return False
        if i < last:
            x_at, inputs, h_n_at = y_at, hidden, h_n_at + state
            h_at, c_at, c_n_at = h_at and h_at + state, c_at and c_at + state, c_n_at and c_n_at + state
    return True


def rnn_step(x, h, c, weights, cell, h_n, c_n):
    """The operator's, of tensors that the dispatcher has seen."""
    c_n = None if c is None else c_n
    rnn_infer(cell, x.contiguous(), h, c, weights, 1, False, None, h_n, c_n, may_lack_memory=True)
