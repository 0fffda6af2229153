"""One layer of RNN, LSTM or GRU by the kernels of csrc/cuda/recurrent; bindings/cuda/recurrent.cpp reads the tuples field by
field, in this order.

The walk through time is one launch of blocks that hold the recurrent weights and wait for one another. The products with
all of x before it, and those that the gradients of x and of the weights are made of behind it, are plain ones: torch's
library has them (cuBLAS), accumulated in float32.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from pyflash.auto.recurrent import GATES
from pyflash.ops.core._cuda import DTYPES, address, launch, native
from pyflash.ops.core.backends import CUDA_ON_HOST
from pyflash.ops.recurrent.reference import SAVED_GATES, has_projection, split

CELLS = native.CELLS


def _allows_tf32(dtype):
    """torch's setting of recurrent layers is cuDNN's, and TF32 is its default."""
    return dtype == torch.float32 and torch.backends.cudnn.rnn.fp32_precision == "tf32"


@lru_cache(maxsize=1024)
def _workspace_bytes(shape, allows_tf32, backward, device):
    return native.rnn_walk_workspace(shape, allows_tf32, backward, device)


def unfit(cell, hidden, dtype, directions, device) -> str:
    """Why a layer of so many units cannot be walked on this device, forward and backward; empty when it can."""
    if not hidden:
        return ""
    shape = (1, 1, 1, hidden, hidden, directions, CELLS[cell], False, DTYPES[dtype])
    for backward in (False, True):
        if not _workspace_bytes(shape, _allows_tf32(dtype), backward, device):
            return (
                f"cuda keeps the recurrent weights in registers and shared memory, and those of {hidden} units of"
                f" {str(dtype).removeprefix('torch.')} are more than this device has"
            )
    return ""


def _contiguous(*tensors):
    """A compiled graph comes here without the public function, and may have changed strides; kernels go by sizes."""
    return (t if t is None else t.contiguous() for t in tensors)


def _product(a, b, out):
    """out = a b; half types accumulate in float32, and stay there where `out` is float32."""
    if a.dtype == out.dtype == torch.float32 or (a.dtype == out.dtype and not CUDA_ON_HOST):
        torch.mm(a, b, out=out)
    elif CUDA_ON_HOST:  # torch's product of half types on a CPU has no result in float32
        out.copy_(a.float() @ b.float())
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=out)


class _Walk:
    """Sizes of a call, the weights, and where every sequence lies at every step, as the kernels take them. Keeps what the
    addresses point to alive."""

    def __init__(self, x, h_0, weights, rows, steps, cell, batch_first):
        self.directions, self.batch, self.hidden = h_0.shape
        self.cell, self.gates, self.like = cell, GATES[cell], x
        if has_projection(len(weights) // self.directions):
            raise NotImplementedError("pyflash: cuda has no recurrent kernel with a projection")
        self.is_packed, self.batch_first = x.dim() == 2, batch_first
        self.length = steps.shape[0] if steps is not None else x.shape[1 if batch_first else 0]
        self.positions = x.shape[0] if self.is_packed else self.length * self.batch
        self.kept = list(_contiguous(*weights))
        self.weights = split(self.kept, self.directions)
        self.is_ragged, places = steps is not None, (0, 0, 0)
        if self.is_ragged:  # PackedSequence keeps its steps on the CPU
            offsets = steps.cumsum(0) - steps
            ragged = [t if t is None else t.to(x.device, torch.int64, non_blocking=True).contiguous()
                      for t in (steps, offsets, rows)]  # fmt: skip
            self.kept += ragged
            places = tuple(map(address, ragged))
        strides = (1, self.length) if batch_first and not self.is_packed else (self.batch, 1)
        self.layout = (*places, self.is_packed, 0, 0, *((1, 1) if self.is_packed else strides))
        self.allows_tf32 = _allows_tf32(x.dtype)

    def shape(self, hidden, directions):
        return (
            self.length, self.batch, self.like.shape[-1], hidden, hidden, directions, CELLS[self.cell], False,
            DTYPES[self.like.dtype],
        )  # fmt: skip

    def flat(self, x):
        """[positions, features]; a view where strides allow."""
        return x.reshape(self.positions, x.shape[-1])

    def empty(self, *shape, dtype=None):
        return self.like.new_empty(self.directions, self.positions, *shape, dtype=dtype)

    def problem(self, backward, *fields):
        """What a walk is handed: its fields are tensors, numbers or None."""
        shape, device = self.shape(self.hidden, self.directions), self.like.device
        sizes = 1, self.batch, 1, *shape[3:]  # it depends on neither steps nor inputs
        size = _workspace_bytes(sizes, self.allows_tf32, backward, 0 if CUDA_ON_HOST else device.index)
        workspace = torch.zeros(size, dtype=torch.uint8, device=device)
        self.kept.append(workspace)
        own = [tuple(map(address, w)) for w in self.weights]
        rest = self.positions, self.allows_tf32, workspace.data_ptr()
        tensors = tuple(address(f) if f is None or isinstance(f, torch.Tensor) else f for f in fields)
        return shape, self.layout, own, rest, tensors

    def gather(self, source, initial=None):
        """`source` [positions, D * cols] as [D, positions, cols], the step before each (the initial state at first); or,
        without `initial`, of each step, and zero past the end of a sequence."""
        directions = 1 if initial is None else self.directions
        cols = source.shape[1] // directions
        to = source.new_empty(directions, self.positions, cols)
        shape = self.shape(cols, directions)
        launch(
            native.rnn_gather,
            (shape, self.layout, (self.positions, source.stride(0), address(source), address(initial), address(to))),
            to,
        )
        return to


def _wanted(tensor):
    """An output that is empty is not wanted."""
    return tensor if tensor.numel() else None


def rnn_fwd(
    x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, save_gates, y, h_n, c_n, cells, gates
):  # fmt: skip
    """Fill y, h_n, c_n and, where they are wanted, cells and gates. Arguments as the operator's; no projection."""
    walk = _Walk(x, h_0, weights, rows, steps, cell, batch_first)
    if not (walk.batch and walk.hidden):
        return
    x, (h_0, c_0) = walk.flat(x), _contiguous(h_0, c_0)
    size, lies_in_gates = walk.gates * walk.hidden, gates.numel() > 0 and (walk.is_packed or not batch_first)
    x_gates = gates if lies_in_gates else walk.empty(walk.gates, walk.hidden, dtype=torch.float32)
    slots = x_gates.shape[-2]
    for own, w in zip(x_gates.view(walk.directions, walk.positions, -1), walk.weights):
        _product(x, w.w_ih.t(), own[:, :size])
    problem = walk.problem(
        False, x_gates, slots, h_0, c_0, y, h_n, None if c_0 is None else c_n, _wanted(cells), _wanted(gates)
    )
    launch(native.rnn_walk_fwd, problem, y)


def _gates_again(walk, x, h_before):
    """Activated gates [D, positions, 4, H] from x and the h before each step: two products and a pass over them."""
    hidden, gates = walk.hidden, walk.empty(4 * walk.hidden, dtype=torch.float32)
    whole = (2 if walk.cell == "gru" else 4) * hidden  # gates whose two parts are simply added
    for own, before, w in zip(gates, h_before, walk.weights):
        _product(x, w.w_ih.t(), own[:, : walk.gates * hidden])
        of_hidden = own.new_empty(walk.positions, walk.gates * hidden)
        _product(before, w.w_hh.t(), of_hidden)
        own[:, :whole] += of_hidden[:, :whole]
        if walk.cell == "gru":
            own[:, 3 * hidden :] = of_hidden[:, whole:]
        launch(
            native.rnn_activate,
            (walk.shape(hidden, 1), (address(w.b_ih), address(w.b_hh), address(own), walk.positions)),
            own,
        )
    return gates


def rnn_bwd(
    x, dy, dh_n, dc_n, dcells, h_0, c_0, weights, rows, steps, y, cells, gates, cell, batch_first, needs, *grads
):  # fmt: skip
    """Fill the gradients that are needed: of x, h_0, c_0 and each weight. Arguments as the operator's; no projection."""
    walk = _Walk(x, h_0, weights, rows, steps, cell, batch_first)
    if not (walk.batch and walk.hidden):
        for grad in grads:
            grad.zero_()
        return
    x = walk.flat(x)
    dy, dh_n, dc_n, dcells, h_0, c_0, y, cells, gates = _contiguous(
        dy, dh_n, dc_n, dcells, h_0, c_0, y, cells, gates
    )  # fmt: skip
    each, slots = len(weights) // walk.directions, 4 if walk.gates > 1 else 1
    is_again = SAVED_GATES[cell] > 0 and not gates.numel()
    h_before = None
    if is_again or any(needs[3 + 1 :: each]):
        h_before = walk.gather(walk.flat(y), h_0)
    if is_again:
        own_x = walk.gather(x.contiguous())[0] if walk.is_ragged and not walk.is_packed else x
        gates = _gates_again(walk, own_x, h_before)
    dx, dh_0, dc_0, *dweights = grads
    dgates = walk.empty(slots, walk.hidden)
    problem = walk.problem(
        True, h_0, c_0, y, _wanted(cells), _wanted(gates), is_again, dy, dh_n, dc_n, dcells,
        dh_0 if needs[1] else None, dc_0 if needs[2] else None, dgates,
    )  # fmt: skip
    launch(native.rnn_walk_bwd, problem, dgates)
    dgates = dgates.view(walk.directions, walk.positions, slots * walk.hidden)
    if needs[0]:
        _fill_dx(walk, dgates, dx)
    if walk.is_ragged and not walk.is_packed and any(needs[3::each]):
        x = walk.gather(x.contiguous())[0]  # what lies past the end of a sequence may be NaN
    _fill_weights(walk, dgates, x, h_before, needs[3:], dweights)


def _input_parts(walk, dgates):
    """(columns of dgates [positions, slots * H], rows of W_ih they belong to)."""
    if walk.cell != "gru":
        return [(dgates, slice(None))]
    hidden = walk.hidden
    return [(dgates[:, hidden : 3 * hidden], slice(0, 2 * hidden)), (dgates[:, :hidden], slice(2 * hidden, None))]


def _fill_dx(walk, dgates, dx):
    """The sum over directions and parts, in float32 until the last."""
    dx = dx.view(walk.positions, dx.shape[-1])
    parts = [
        (part, w.w_ih[own_rows]) for own, w in zip(dgates, walk.weights) for part, own_rows in _input_parts(walk, own)
    ]
    if len(parts) == 1:
        return _product(*parts[0], dx)
    total, more = (torch.empty_like(dx, dtype=torch.float32) for _ in range(2))
    for i, (part, weight) in enumerate(parts):
        _product(part, weight, more if i else total)
        if i:
            total += more
    dx.copy_(total)


def _fill_weights(walk, dgates, x, h_before, needs, dweights):
    each = len(dweights) // walk.directions
    for d, own in enumerate(dgates):
        of_input, of_hidden = _input_parts(walk, own), [(own[:, -walk.gates * walk.hidden :], slice(None))]
        sources = of_input, of_hidden, of_input, of_hidden  # of w_ih, w_hh, b_ih, b_hh
        for i, parts in enumerate(sources[:each]):
            if not needs[d * each + i]:
                continue
            grad = dweights[d * each + i]
            for part, own_rows in parts:
                if i < 2:
                    _product(part.t(), h_before[d] if i else x, grad[own_rows])
                else:
                    torch.sum(part, 0, out=grad[own_rows])
