"""Cells and layers in one direction on CPU tensors, gradients off: what a stream costs a token, so with little Python."""

from __future__ import annotations

import weakref
from functools import lru_cache

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.packed_weights import packed_weights
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.recurrent._cpu import CELLS, Kept, _Problem, find_kept
from pyflash.ops.recurrent.stream import NO_MEMORY, NOT_KEPT, Given

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


def _pack(cell, shape, weights, threads, is_kept):
    x, h = weights[0].new_empty(1, 1, shape[2]), weights[0].new_empty(1, 1, shape[3])
    return _Problem(x, h, weights, None, None, cell, False).panels(False, threads, is_kept)


def _packed_now(cell, shape, weights, threads):
    """A `Kept` for one call."""
    return Kept(shape, weights, lambda: _pack(cell, shape, weights, threads, False), threads, False)


def _find(cell, shape, weights, threads, isa, renew=False, may_lack_memory=True):
    """Returns packed weights, None where they are not kept, NO_MEMORY where a weight has none and may not. A stale hit is
    the caller's to detect (`run` says so) and to retry with `renew=True`."""
    places = [w.data_ptr() for w in weights]
    place = (isa, *shape[2:], *places)  # the same memory may serve layers of other shapes
    versions = _versions(weights)
    recent = None if renew else _recent.get(place)
    if recent is not None and recent[0] == versions:
        kept = recent[1]()
        if kept is not None:
            kept.used = packed_weights.refusals
            return kept
    if not (may_lack_memory or all(places)):
        return NO_MEMORY
    kept = find_kept(shape, weights, lambda: _pack(cell, shape, weights, threads, True), threads, renew)
    if kept is not None and all(places):
        if len(_recent) >= RECENT:
            _recent.clear()
        _recent[place] = versions, weakref.ref(kept)
    return kept


def rnn_infer(given: Given, outputs, may_lack_memory=False, may_pack=True) -> str:
    """Layers in one direction; why not, where nothing was computed: NO_MEMORY or NOT_KEPT.

    Args:
        outputs: (y, h_n, c_n), contiguous: y like x with `hidden` features, h_n and c_n like h and c. Of one step y may be
            None: h_n is it.
        may_lack_memory: a tensor may, being empty.
        may_pack: weights that are not kept are packed for this call.
    """
    cell, x, h, c, weights, layers, batch_first = given
    y, h_n, c_n = outputs
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
        return NO_MEMORY
    h_n_at, c_n_at = h_n.data_ptr(), 0 if c_n is None else c_n.data_ptr()
    last = layers - 1
    each, state = len(weights) // layers, batch * hidden * x.element_size()
    found = []  # held: another thread may drop it from the cache
    for i in range(layers):
        shape, size = _shape(cell, steps, batch, hidden if i else inputs, hidden, dtype, threads, isa)
        own = weights[i * each : (i + 1) * each] if last else weights
        kept = _find(cell, shape, own, threads, isa, False, may_lack_memory)
        if kept is NO_MEMORY:
            return NO_MEMORY
        found.append((shape, size, own, kept))
    if not may_pack and any([kept is None for *_, kept in found]):
        return NOT_KEPT
    if last:
        between = [take_workspace(steps * state, f"rnn_between_{i}") for i in range(min(last, 2))]
    for i, (shape, size, own, kept) in enumerate(found):
        workspace = take_workspace(size, "rnn")
        y_at = between[i % 2].data_ptr() if i < last else h_n_at if y is None else y.data_ptr()
        call = steps, batch, step, row, x_at, h_at, c_at, y_at, h_n_at, c_n_at, workspace.data_ptr()
        while kept is not None and not kept.native.run(call, threads):
            kept = _find(cell, shape, own, threads, isa, True)
        if kept is None:
            _packed_now(cell, shape, own, threads).native.run(call, threads)
        if i < last:
            x_at, h_n_at = y_at, h_n_at + state
            h_at, c_at, c_n_at = h_at and h_at + state, c_at and c_at + state, c_n_at and c_n_at + state
    return ""


def rnn_step(x, h, c, weights, cell, h_n, c_n):
    """The operator's, of tensors that the dispatcher has seen."""
    c_n = None if c is None else c_n
    rnn_infer(Given(cell, x.contiguous(), h, c, weights), (None, h_n, c_n), may_lack_memory=True)
