"""One layer of RNN, LSTM or GRU on CPU tensors."""

from __future__ import annotations

from functools import lru_cache

import torch

from pyflash import _cpu
from pyflash.auto.recurrent import GATES
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.packed_weights import packed_weights
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.recurrent.reference import SAVED_GATES, has_projection, split

CELLS = _cpu.CELLS

# Sequences times steps from which a call compares every element of its weights with what was packed: as much work as
# packing, an eighth of a product of 64 rows. Of one row it would take as long as the step, so calls of fewer compare one
# line of each 4 KB, another one in each call: 5 us of 40 for LSTMCell with H256, 15 of 100 with H512, 48 of 540 with H1024
# (Zen 5, one thread).
WHOLE_ROWS = 64


@lru_cache(maxsize=1024)
def _sizes(shape, rows, backward, threads, isa):
    """(bytes of the panels, bytes of the workspace) for `rows` sequences times steps."""
    return _cpu.rnn_sizes(shape, rows, backward, threads)


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


class _Problem:
    """What every kernel is told; bindings/recurrent.cpp reads the tuples field by field, in this order. Keeps what they point to alive."""

    def __init__(self, x, h_0, weights, rows, steps, cell, batch_first):
        directions, batch, output = h_0.shape
        self.tensors = [w.contiguous() for w in weights]
        hidden, each = weights[0].shape[0] // GATES[cell], len(weights) // directions
        is_packed = x.dim() == 2
        if is_packed:
            length, x_strides, y_rows = steps.shape[0], (x.stride(0), x.stride(0)), (1, 1)
        elif batch_first:
            length, x_strides, y_rows = x.shape[1], (x.stride(1), x.stride(0)), (1, x.shape[1])
        else:
            length, x_strides, y_rows = x.shape[0], (x.stride(0), x.stride(1)), (batch, 1)
        self.rows, self.steps, self.offsets, self.count = rows, steps, None, length * batch
        places = 0, 0, 0
        if steps is not None:
            self._check(x, length, batch, is_packed)
            self.offsets, self.count = steps.cumsum(0) - steps, int(steps.sum())
            places = steps.data_ptr(), self.offsets.data_ptr(), _address(rows)
        self.shape = (
            length, batch, x.shape[-1], hidden, output, directions, CELLS[cell], has_projection(each), DTYPES[x.dtype],
        )  # fmt: skip
        self.layout = (*places, is_packed, *x_strides, *y_rows)
        self.weights = split([w.data_ptr() for w in self.tensors], directions, absent=0)

    def _check(self, x, length, batch, is_packed):
        """The kernels go where these say; a compiled graph comes here without the public function."""
        steps, rows = self.steps, self.rows
        fits = steps.shape == (length,) and steps.is_contiguous() and steps.dtype == torch.int64
        fits = (
            fits and length > 0 and 0 <= int(steps[-1]) and int(steps[0]) <= batch and bool((steps.diff() <= 0).all())
        )
        fits = fits and (not is_packed or (int(steps.sum()) == x.shape[0] and int(steps[-1]) > 0))
        if rows is not None:
            fits = fits and rows.shape == (batch,) and rows.is_contiguous() and rows.dtype == torch.int64
            fits = fits and torch.equal(rows.sort()[0], torch.arange(batch, device="cpu"))
        if not fits:
            raise RuntimeError(
                "pyflash::rnn: steps are not the descending numbers of sequences still running at each step,"
                " or rows not an order of the batch"
            )

    def panels(self, backward: bool, threads: int, is_kept: bool = False) -> torch.Tensor:
        size = _sizes(self.shape, self.count, backward, threads, _cpu.isa())[0]
        if is_kept:
            panels = torch.empty(size, dtype=torch.uint8, device="cpu")
        else:
            panels = take_workspace(size, "rnn_bwd_panels" if backward else "rnn_panels")
        _cpu.rnn_pack(self.shape, self.weights, panels.data_ptr(), backward, threads)
        return panels

    def workspace(self, backward: bool, threads: int) -> torch.Tensor:
        return take_workspace(_sizes(self.shape, self.count, backward, threads, _cpu.isa())[1], "rnn")


def _contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


def rnn_fwd(
    x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, save_gates, y, h_n, c_n, cells, gates,
    is_kept=False,
):  # fmt: skip
    """is_kept: the packed weights are kept for the next call; gradients are off."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    h_0, c_0 = h_0.contiguous(), None if c_0 is None else c_0.contiguous()
    problem, threads = _Problem(x, h_0, weights, rows, steps, cell, batch_first), torch.get_num_threads()
    kept = None
    if is_kept:
        kept = find_kept(problem.shape, weights, lambda: problem.panels(False, threads, True), threads)
        if kept is not None and not kept.native.is_current(problem.shape[0] * problem.shape[1], threads):
            kept = find_kept(problem.shape, weights, lambda: problem.panels(False, threads, True), threads, renew=True)
    panels = problem.panels(False, threads) if kept is None else kept.panels
    workspace = problem.workspace(False, threads)
    tensors = (
        x.data_ptr(), panels.data_ptr(), h_0.data_ptr(), 0 if c_0 is None else c_0.data_ptr(), y.data_ptr(), h_n.data_ptr(),
        c_n.data_ptr(), cells.data_ptr() if cells.numel() else 0, gates.data_ptr() if gates.numel() else 0,
        workspace.data_ptr(),
    )  # fmt: skip
    _cpu.rnn_fwd(problem.shape, problem.layout, tensors, threads)


class Kept:
    """Packed weights, and the native object that knows whether they are still those of the weights.

    Not is_kept: for one call, whose weights are packed now.
    """

    __slots__ = ("__weakref__", "native", "nbytes", "panels", "used")

    def __init__(self, shape, weights, make, threads, is_kept=True):
        places = [(w.data_ptr(), *(w.shape if w.dim() == 2 else (1, w.numel()))) for w in weights]
        self.native = _cpu.RnnKept(shape, places if is_kept else [], WHOLE_ROWS, threads)
        self.panels = make()
        self.nbytes = self.panels.nbytes
        self.native.set_panels(self.panels.data_ptr())


def find_kept(shape, weights, make, threads, renew=False):
    """Returns packed weights, None where they are not kept. A stale hit is the caller's to detect (`is_current()`) and to
    retry with `renew=True`.

    Args:
        shape: a `_Problem`'s.
        make: () -> the panels, packed now.
    """
    if any([w.is_inference() or not w.is_contiguous() for w in weights]):  # no version, and a change is not seen
        return None
    places = [(w.data_ptr(), w.shape) for w in weights]
    place = (*shape[2:], *places, _cpu.isa())  # the same memory may serve layers of other shapes
    if renew:
        packed_weights.drop(place)
    return packed_weights.find(
        place, tuple([w._version for w in weights]), weights, lambda: _cpu.rnn_sizes(shape, 0, False, threads)[0],
        lambda: Kept(shape, weights, make, threads),
    )  # fmt: skip


def rnn_cached_fwd(
    x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, y, h_n, c_n, cells, gates
):  # fmt: skip
    rnn_fwd(
        x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, False, y, h_n, c_n, cells, gates, is_kept=True
    )


def rnn_bwd(
    x, dy, dh_n, dc_n, dcells, h_0, c_0, weights, rows, steps, y, cells, gates, cell, batch_first, needs, *grads
):  # fmt: skip
    if x.stride(-1) != 1:
        x = x.contiguous()
    dy, dh_n, dc_n, dcells, h_0, c_0, y = map(_contiguous, (dy, dh_n, dc_n, dcells, h_0, c_0, y))
    problem, threads = _Problem(x, h_0, weights, rows, steps, cell, batch_first), torch.get_num_threads()
    has_gates = gates.numel() > 0
    panels, workspace = problem.panels(True, threads), problem.workspace(True, threads)
    fwd_panels = None if has_gates or not SAVED_GATES[cell] else problem.panels(False, threads)
    wanted = [grad if need else None for grad, need in zip(grads, needs)]
    _cpu.rnn_bwd(
        problem.shape, problem.layout, problem.weights,
        split([_address(w) for w in wanted[3:]], h_0.shape[0], absent=0),
        tuple(_address(t) for t in (
            x, panels, fwd_panels, h_0, c_0, y, cells, gates if has_gates else None, dy, dh_n, dc_n, dcells,
            *wanted[:3], workspace,
        )), threads,
    )  # fmt: skip
