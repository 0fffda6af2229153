"""Cross entropy of x W^T + b, a block of scores at a time.

Where the gradients are computed with the loss, a block is as many rows as fit with all of their classes: its scores become
gradients, which are multiplied by W and x while they are there, and dW adds up in place. Each of these products reads, and dW
also writes, as much memory as W has; 256 rows make a hundred FLOPs of each byte. Where they are computed by
the backward, the classes are cut first and each part of dW is complete when the next begins, so that it is kept in the
accumulation type only for that long; it takes a fourth product, which gives the scores again.
"""

from __future__ import annotations

import torch

from pyflash import _cpu
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.linear._cpu import add_product, linear_fwd
from pyflash.ops.loss._cpu_cross_entropy import _address, _problem

# Of W a part that stays in the last cache while the rows pass by, 4 MB with 512 features.
BLOCK_CLASSES = 2048
BLOCK_ROWS = 960  # which dW sums up in one go: gemm.h packs 512 pairs of bfloat16 together
# Of rows with all classes. Zen 4, one thread: dW += dscores^T x computes 59 GFLOP/s with 128 rows, 76 with 256, 86 with 480.
ROWS_BYTES = 48 << 20
LEAST_ROWS, MOST_ROWS = 64, 480  # gemm.h packs W again for more


def rows_of_block(classes: int, itemsize: int) -> int:
    """How many rows of all classes are a block, where gradients are computed with the loss."""
    return min(MOST_ROWS, ROWS_BYTES // (classes * itemsize))


def _parts(size: int, each: int):
    return [slice(start, min(start + each, size)) for start in range(0, size, each)]


class _Blocks:
    """A call: its tensors, and the kernels on a block of its scores."""

    def __init__(self, x, weight, bias, targets, class_weight, options, loss, tops, logs, total, dloss=None):
        self.x, self.weight, self.bias, self.targets, self.class_weight = x, weight, bias, targets, class_weight
        self.loss, self.tops, self.logs, self.total, self.dloss = loss, tops, logs, total, dloss
        self.options, self.threads = options, torch.get_num_threads()
        self.classes = _parts(weight.shape[0], BLOCK_CLASSES)
        self.widest = min(weight.shape[0], BLOCK_CLASSES)
        self.sum = torch.empty(1, dtype=torch.float64, device="cpu")

    def memory(self, elements: int) -> torch.Tensor:
        size = elements * self.x.element_size()
        return take_workspace(size, "linear_cross_entropy")[:size].view(self.x.dtype)

    def sums(self) -> torch.Tensor:
        """What is known of each row's softmax."""
        return torch.empty(len(self.x), _cpu.ROW_SUMS_BYTES, dtype=torch.uint8, device="cpu")

    def scores(self, rows: slice, classes: slice, memory: torch.Tensor) -> torch.Tensor:
        shape = rows.stop - rows.start, classes.stop - classes.start
        scores = memory[: shape[0] * shape[1]].view(shape)
        bias = None if self.bias is None else self.bias[classes]
        linear_fwd(self.x[rows], self.weight[classes], bias, "", 0.0, 0.0, False, scores, None)
        return scores

    def run(self, kernel, rows: slice, classes: slice, scores=None, sums=None):
        """bindings/cross_entropy.cpp reads the tuple field by field, in this order."""
        ignore_index, smoothing, reduction = self.options
        loss, dloss = (t if t is None or reduction != "none" else t[rows] for t in (self.loss, self.dloss))
        shaped = self.x[:1, :1, None].expand(rows.stop - rows.start, len(self.weight), 1)  # for its sizes
        typed = loss if dloss is None else dloss
        problem = _problem(
            shaped, self.targets[rows], None, self.class_weight, ignore_index, smoothing, reduction, typed
        )
        problem = (
            _address(scores), *problem[1:], classes.start, classes.stop - classes.start, _address(sums), _address(loss),
            self.tops[rows].data_ptr(), self.logs[rows].data_ptr(), self.total.data_ptr(), self.sum.data_ptr(), _address(dloss),
        )  # fmt: skip
        kernel(problem, self.threads)

    def begin(self):
        everything = slice(0, len(self.x)), slice(0, len(self.weight))
        self.run(_cpu.linear_cross_entropy_begin, *everything)


class _Gradients:
    """Those that are needed, in the accumulation type: the results themselves, unless these are of a half type."""

    def __init__(self, blocks, needs, dx, dweight, dbias, dweight_classes):
        self.blocks, (self.need_dx, self.need_dweight, self.need_dbias) = blocks, needs
        self.results = dx, dweight, dbias
        wide = acc_dtype(dx.dtype)
        self.is_half = wide != dx.dtype
        if self.is_half:
            dx = dx.new_empty(dx.shape, dtype=wide)
            dbias = dbias.new_empty(dbias.shape, dtype=wide)
            dweight = dweight.new_empty((dweight_classes, *dweight.shape[1:]) if self.need_dweight else 0, dtype=wide)
        self.dx, self.dweight, self.dbias = dx, dweight, dbias
        if self.need_dbias:
            self.dbias.zero_()

    def add(self, rows: slice, classes: slice, scores: torch.Tensor):
        """What a block adds, whose scores are gradients by now. The first rows come first, and so do the first classes."""
        b = self.blocks
        if self.need_dx:
            add_product(scores, b.weight[classes], self.dx[rows], classes.start == 0)
        if self.need_dweight:
            add_product(scores.t(), b.x[rows], self._of_classes(classes), rows.start == 0)
        if self.need_dbias:
            self.dbias[classes] += torch.sum(scores, 0, dtype=self.dbias.dtype)

    def _of_classes(self, classes):
        return self.dweight[: classes.stop - classes.start] if self.is_half else self.dweight[classes]

    def finish_classes(self, classes):
        if self.is_half and self.need_dweight:
            self.results[1][classes].copy_(self._of_classes(classes))

    def finish(self):
        if self.is_half:
            for need, wide, result in (
                (self.need_dx, self.dx, self.results[0]),
                (self.need_dbias, self.dbias, self.results[2]),
            ):
                if need:
                    result.copy_(wide)


def linear_cross_entropy_fwd(x, weight, bias, targets, class_weight, *rest):
    *options, _, need_dx, need_dweight, need_dbias, loss, tops, logs, total, dx, dweight, dbias = rest
    blocks = _Blocks(x, weight, bias, targets, class_weight, options, loss, tops, logs, total)
    blocks.begin()
    needs = need_dx, need_dweight, need_dbias
    if any(needs):
        _with_gradients(blocks, needs, dx, dweight, dbias)
        return
    memory, sums = blocks.memory(min(BLOCK_ROWS, len(x)) * blocks.widest), blocks.sums()
    for classes in blocks.classes:
        for rows in _parts(len(x), BLOCK_ROWS):
            scores = blocks.scores(rows, classes, memory)
            blocks.run(_cpu.linear_cross_entropy_sums, rows, classes, scores, sums[rows])
    blocks.run(_cpu.linear_cross_entropy_losses, slice(0, len(x)), classes, None, sums)


def _with_gradients(blocks, needs, dx, dweight, dbias):
    n, classes_of = len(blocks.x), len(blocks.weight)
    rows_each = max(1, min(n, rows_of_block(classes_of, blocks.x.element_size())))
    memory, sums = blocks.memory(rows_each * classes_of), blocks.sums()
    gradients = _Gradients(blocks, needs, dx, dweight, dbias, classes_of)
    for rows in _parts(n, rows_each):
        count = rows.stop - rows.start
        block = []
        for classes in blocks.classes:
            block.append(blocks.scores(rows, classes, memory[count * classes.start :]))
            blocks.run(_cpu.linear_cross_entropy_sums, rows, classes, block[-1], sums[rows])
        blocks.run(_cpu.linear_cross_entropy_losses, rows, classes, None, sums[rows])
        for classes, scores in zip(blocks.classes, block):
            blocks.run(_cpu.linear_cross_entropy_gradients, rows, classes, scores)
            gradients.add(rows, classes, scores)
    if gradients.is_half:
        gradients.finish_classes(slice(0, classes_of))
    gradients.finish()


def linear_cross_entropy_bwd(dloss, x, weight, bias, targets, class_weight, tops, logs, total, *rest):
    *options, need_dx, need_dweight, need_dbias, dx, dweight, dbias = rest
    blocks = _Blocks(x, weight, bias, targets, class_weight, options, None, tops, logs, total, dloss)
    memory = blocks.memory(min(BLOCK_ROWS, len(x)) * blocks.widest)
    needs = need_dx, need_dweight, need_dbias
    gradients = _Gradients(blocks, needs, dx, dweight, dbias, blocks.widest)
    for classes in blocks.classes:
        for rows in _parts(len(x), BLOCK_ROWS):
            scores = blocks.scores(rows, classes, memory)
            blocks.run(_cpu.linear_cross_entropy_gradients, rows, classes, scores)
            gradients.add(rows, classes, scores)
        gradients.finish_classes(classes)
    gradients.finish()


def scale(x: torch.Tensor, by: float) -> None:
    """x *= by; x contiguous."""
    _cpu.loss_scale((x.data_ptr(), x.numel(), by, DTYPES[x.dtype]), torch.get_num_threads())
