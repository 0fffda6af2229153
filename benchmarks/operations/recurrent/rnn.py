"""RNN, LSTM and GRU layers: whole sequences, packed batches, both directions, and single steps of a stream.

By default the shapes of named models and of streams, and a cross through the grid: narrow layers at
every batch, small batches at every width, for short and long sequences. `--full` adds the rest of the grid, every cell,
length, batch and width, in inference and in training, padded and packed: three times as many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.known import TWICE, ZEN_4, Gap, Story
from benchmarks.operation import Case, Operation
from pyflash.auto import recurrent as auto

MODULES = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU, "RNN": torch.nn.RNN}
CELLS = {"LSTM": torch.nn.LSTMCell, "GRU": torch.nn.GRUCell, "RNN": torch.nn.RNNCell}
GATES = {name: auto.GATES.get(name.lower(), 1) for name in MODULES}
# A unit and step: of each gate's sigmoid or tanh, and of tanh of LSTM's cell state.
EXPS = {"LSTM": 5, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Shape:
    cell: str  # LSTM, GRU, RNN
    length: int  # T
    batch: int  # B
    hidden: int  # H, and the features of x
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False  # lengths fall evenly from T to T / 4
    step: bool = False  # a cell instead of a layer

    @property
    def lengths(self) -> list[int]:
        if not self.packed:
            return [self.length] * self.batch
        first, last = self.length, max(1, self.length // 4)
        return [first - (first - last) * b // max(1, self.batch - 1) for b in range(self.batch)]


def case(cell, length, batch, hidden, modes, *, quick=False, full=False, dtype="float32", model="", **rest) -> Case:
    shape = Shape(cell, length, batch, hidden, **rest)
    words = [cell + ("Cell" if shape.step else ""), f"T{length} B{batch} H{hidden}"]
    words += [f"x{shape.layers}"] * (shape.layers > 1) + ["bidirectional"] * shape.bidirectional
    return Case(
        " ".join(words + ["packed"] * shape.packed), shape, modes, dtype=dtype, quick=quick, full=full, model=model
    )


BOTH = ("forward", "training")


CHOSEN = (
    case("GRU", 128, 32, 256, BOTH, quick=True, model="a character model's layer"),
    case("GRU", 128, 1, 256, BOTH, quick=True),
    case("LSTM", 128, 32, 256, BOTH, quick=True, model="a character model's layer"),
    case("LSTM", 128, 1, 256, BOTH, quick=True),
    case("RNN", 128, 32, 256, BOTH, quick=True),
    case("RNN", 128, 1, 256, BOTH),
    *(
        case(cell, 1, 1, hidden, BOTH, quick=hidden == 256, model="one step of a stream")
        for cell in ("LSTM", "GRU", "RNN")
        for hidden in (64, 256, 1024)
    ),
    case("LSTM", 1, 1, 256, ("forward",), step=True, quick=True, model="one step of a stream"),
    case("GRU", 1, 1, 256, ("forward",), step=True, quick=True, model="one step of a stream"),
    case("GRU", 128, 32, 256, BOTH, packed=True, quick=True, model="sentences, longest first"),
    case("LSTM", 128, 32, 256, BOTH, packed=True),
    case("GRU", 128, 32, 256, ("forward",), layers=2, bidirectional=True, model="a tagger"),
    case("LSTM", 128, 32, 256, BOTH, layers=2, bidirectional=True, model="a tagger"),
    *(
        case(cell, 64, 64, hidden, BOTH)
        for cell in ("GRU", "LSTM", "RNN")
        for hidden in (512, 1024)
    ),
    *(
        case(cell, length, batch, hidden, BOTH)
        for cell in MODULES
        for length in (32, 128)
        for batch, hidden in ((1, 64), (8, 64), (64, 64), (8, 256), (8, 512), (1, 1024))
    ),
    case("LSTM", 128, 32, 256, BOTH, dtype="bfloat16", model="oneDNN's own ground"),
    case("GRU", 128, 32, 256, BOTH, dtype="bfloat16"),
    case("GRU", 32, 8, 128, ("double-backward",), quick=True, model="a gradient penalty; torch has none for LSTM"),
    case("RNN", 32, 8, 128, ("double-backward",), model="the same"),
)  # fmt: skip


def grid() -> list[Case]:
    """Every combination, less what is chosen already. One row has nothing to pack, nor has one step."""
    declared = {(one.name, one.dtype) for one in CHOSEN}
    rows = [
        case(cell, length, batch, hidden, BOTH, full=True, packed=packed)
        for cell, length, batch, hidden, packed in product(
            MODULES, (1, 32, 128), (1, 8, 32, 64), (64, 256, 512, 1024), (False, True)
        )
        if not packed or (batch > 1 and length > 1)
    ]
    return [row for row in rows if (row.name, row.dtype) not in declared]


CASES = (*CHOSEN, *grid())

# Held on the chip up to 128 units, a launch a step above.
GPU = tuple(
    Case(f"{cell} T64 B64 H{hidden}", Shape(cell, 64, 64, hidden), BOTH, dtype, small=Shape(cell, 3, 4, small))
    for hidden, small in ((64, 12), (128, 12), (256, 20), (512, 20))
    for cell in MODULES
    for dtype in ("bfloat16", "float32")
)
GPU += (
    Case("GRU T64 B64 H128 packed", Shape("GRU", 64, 64, 128, packed=True), BOTH, "bfloat16",
         small=Shape("GRU", 4, 3, 12, packed=True)),
    Case("LSTM T64 B64 H128x2 bidirectional", Shape("LSTM", 64, 64, 128, layers=2, bidirectional=True), BOTH,
         "bfloat16", small=Shape("LSTM", 3, 2, 12, layers=2, bidirectional=True)),
)  # fmt: skip


class _Layer(torch.nn.Module):
    """One call: packs where the case says so, and gives tensors back."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        if shape.step:
            self.layer = CELLS[shape.cell](shape.hidden, shape.hidden)
        else:
            self.layer = MODULES[shape.cell](
                shape.hidden, shape.hidden, num_layers=shape.layers, bidirectional=shape.bidirectional
            )

    def forward(self, x, *states):
        if self.shape.step:
            found = self.layer(x[0], states if self.shape.cell == "LSTM" else states[0])
            return found if isinstance(found, tuple) else (found,)
        if self.shape.packed:
            x = pack_padded_sequence(x, self.shape.lengths)
        y, state = self.layer(x)
        y = y.data if isinstance(y, PackedSequence) else y
        return (y, *state) if isinstance(state, tuple) else (y, state)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    x = torch.randn(shape.length, shape.batch, shape.hidden)
    if not shape.step:
        return (x,)
    return x, *torch.randn(2 if shape.cell == "LSTM" else 1, shape.batch, shape.hidden).unbind(0)


def ours(case: Case):
    import pyflash

    return pyflash.replace(_Layer(case.shape))


def _steps(shape: Shape) -> int:
    return sum(shape.lengths) * shape.layers * (2 if shape.bidirectional else 1)


def flops(case: Case, mode: str) -> float:
    """Products with x and with h; the second layer of two directions reads twice the features."""
    shape, products = case.shape, {"forward": 1, "backward": 2, "training": 3}[mode]
    columns = 2 * shape.hidden
    if shape.layers > 1 and shape.bidirectional:
        columns += shape.hidden * (shape.layers - 1) / shape.layers
    return products * _steps(shape) * 2 * GATES[shape.cell] * shape.hidden * columns


def bytes_(case: Case, mode: str) -> float:
    """Weights and x and y once, per product."""
    shape = case.shape
    weights = shape.layers * (2 if shape.bidirectional else 1) * GATES[shape.cell] * 2 * shape.hidden**2
    return (
        {"forward": 1, "backward": 2, "training": 3}[mode]
        * case.itemsize
        * (weights + 2 * _steps(shape) * shape.hidden)
    )


def exps(case: Case, mode: str) -> float:
    """Those of the forward; the backward finds gates and states saved."""
    return 0.0 if mode == "backward" else EXPS[case.shape.cell] * _steps(case.shape) * case.shape.hidden


STORY = Story(
    limit="FLOPs: 2 G H (I + H) a step and row, G gates; one row reads the recurrent matrix once a step: L2's bandwidth.",
    elsewhere="oneDNN's LSTM runs at 75 to 90% of the peak; GRU, tanh RNN, packed sequences and projections loop over"
    " time steps in torch's dispatcher.",
    gaps=(
        TWICE,
        Gap("T1 B", "a single step: Python, and weights read once from wherever they lie"),
        Gap(
            "T128 B1 ",
            "each core reads its half of the recurrent weights once a step (GRU 393 KB, RNN 131 KB) from L2, at"
            " 100 to 110 of the 118 GB/s that 32 bytes a cycle are; then the cores exchange h, which takes 55 ns where"
            " the hypervisor has put both in one part of the processor and 250 where it has not (RNN 0.27 and 0.35 ms)",
            mode="forward",
            families=ZEN_4,
        ),
        Gap(
            "packed",
            "products alone, with neither activations nor copies of x, run at 93% of the peak; the rest is they and"
            " pack_padded_sequence, which the row holds on both sides",
            mode="forward",
            families=ZEN_4,
        ),
        *(
            Gap(
                few,
                "a step for the few rows of a small batch, or of a narrow layer, cannot fill the multiply-add units: it"
                " reads the recurrent weights once for each",
            )
            for few in ("B1 ", "B8 ", "H64")
        ),
        Gap(
            "LSTM",
            "oneDNN's kernel is as near to the peak as ours; one step with gradients is Python on both sides",
            up_to=1.3,
        ),
        Gap(
            "",
            "torch's kernel is as near to the peak, or the step's activations and copies are what is left",
            up_to=1.3,
        ),
    ),
)

OPERATION = Operation(
    name="rnn", cases=CASES, inputs=inputs, torch=lambda case: _Layer(case.shape), pyflash=ours, flops=flops,
    bytes=bytes_, exps=exps, gpu=GPU,
)  # fmt: skip


def _point(kind, sizes):
    cell, module = kind.split()
    return OPERATION, Shape(cell.upper(), *sizes, step=module == "cell")


POINTS = {"rnn": _point}
