"""tensor_stats against its definition in float64: whole tensors, runs, columns, in any order of dimensions."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
import torch
from helpers import FLOAT_DTYPES, backend_params, use

from pyflash.ops.statistics import tensor_stats as module
from pyflash.ops.statistics.tensor_stats import MOMENTS, tensor_stats

BACKENDS = backend_params("cpu", "triton", "torch")

CASES = [  # shape, dimension of the groups, order, why it is here
    ((1,), None, "contiguous", "smallest"),
    ((3, 37), None, "contiguous", "odd width: the rest of a vector"),
    ((33000,), None, "contiguous", "more than a chunk"),
    ((5, 37), -1, "contiguous", "columns: a vector and a rest"),
    ((5, 37), 0, "contiguous", "runs of odd length"),
    ((70, 513), 1, "contiguous", "more columns than a block, more rows than a part"),
    ((70, 513), 0, "transposed", "columns that are rows in memory"),
    ((3, 5, 7, 7), 1, "contiguous", "channels first"),
    ((3, 5, 7, 7), 1, "channels_last", "channels last"),
    ((3, 200, 2), 1, "contiguous", "steps between batch and features"),
    ((4, 6), 1, "strided", "not dense: copied"),
    ((4, 6), 1, "expanded", "one number, many times"),
    ((4, 1), 1, "contiguous", "one group"),
    ((0, 6), 1, "contiguous", "groups of nothing"),
    ((6, 0), 1, "contiguous", "no groups"),
    ((), None, "contiguous", "a number"),
]


def laid_out(x, order):
    if order == "transposed":
        return x.mT.contiguous().mT
    if order == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if order == "strided":
        return torch.stack([x, -x], -1)[..., 0]
    if order == "expanded":
        return x[:1, :1].expand(x.shape)
    return x


def planted(shape, dtype):
    """Zeros of both signs, infinities and NaN among numbers of any size."""
    x = (torch.randn(shape) * 10 ** torch.empty(shape).uniform_(-3, 3)).to(dtype)
    flat = x.view(-1)
    for start, step, value in ((0, 5, 0.0), (2, 11, -0.0), (3, 29, inf), (4, 31, -inf), (6, 37, nan)):
        flat[start::step] = value
    return x


def defined(x, dim, low, high):
    """By numpy, in float64. low and high are compared in float32 where x is not float64."""
    wide = x.double().numpy()
    groups = (
        wide.reshape(1, -1)
        if dim is None
        else np.moveaxis(wide, dim, 0).reshape(wide.shape[dim], wide.size // max(wide.shape[dim], 1))
    )
    if x.dtype != torch.float64:
        low, high = np.float64(np.float32(low)), np.float64(np.float32(high))
    finite = np.isfinite(groups)
    kept = np.where(finite, groups, 0)
    found = [
        kept.sum(1),
        (kept * kept).sum(1),
        (groups == 0).sum(1),
        ((groups <= low) | (groups >= high)).sum(1),
        (~finite).sum(1),
    ]
    return torch.tensor(np.stack(found, 1), dtype=torch.float64), torch.tensor(np.abs(kept).sum(1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[3])
def test_it_is_its_definition(case, dtype, backend):
    shape, dim, order, _ = case
    x = planted(shape, dtype)
    x = laid_out(x, order)
    for low, high in ((-inf, inf), (-0.3, 0.7)):
        with torch.device("cpu"):
            truth, terms = defined(x.cpu(), dim, low, high)
        with use(backend):
            found = tensor_stats(x, dim, low, high).cpu()
        assert found.shape == (1 if dim is None else shape[dim], len(MOMENTS)) and found.dtype == torch.float64
        assert torch.equal(found[:, 2:], truth[:, 2:])
        # Sums in float64: rounding of as many additions, of terms that do not cancel but in the first.
        rounding = max(x.numel(), 1) * torch.finfo(torch.float64).eps
        assert ((found[:, 0] - truth[:, 0]).abs() <= rounding * terms).all()
        assert ((found[:, 1] - truth[:, 1]).abs() <= rounding * truth[:, 1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape, dim", [((100,), None), ((9, 40), 1), ((3, 40), 0)])
def test_squares_of_the_smallest_and_the_largest(shape, dim, backend):
    """In float32 they would be 0 and infinite."""
    for value in (1e-38, 1e-45, 3e38):
        x = torch.full(shape, value)
        with use(backend):
            found = tensor_stats(x, dim).cpu()
        n = x.numel() / len(found)
        square = float(np.float32(value)) ** 2
        torch.testing.assert_close(
            found[:, 1], torch.full((len(found),), n * square, dtype=torch.float64, device="cpu"), rtol=1e-12, atol=0
        )
        assert not found[:, 2:].any()


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_nothing_outside_of_the_tensor_is_read(backend):
    """What lies beside it is NaN, and would be counted."""
    for shape, dim in (((37,), None), ((5, 37), 1), ((5, 37), 0), ((2, 3, 7), 1)):
        n = torch.Size(shape).numel()
        memory = torch.full((n + 128,), nan)
        x = memory[64 : 64 + n].view(shape).fill_(1.0)
        with use(backend):
            found = tensor_stats(x, dim, 1.0, 2.0)
        each = n / len(found)
        assert torch.equal(found, torch.tensor([each, each, 0, each, 0], dtype=torch.float64).expand_as(found))


def test_results_do_not_depend_on_the_threads():
    before, found = torch.get_num_threads(), []
    tensors = [(torch.randn(1 << 18), None), (torch.randn(3000, 700), 1), (torch.randn(6, 50, 900), 1)]
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use("cpu"):
                found.append([tensor_stats(x, dim) for x, dim in tensors])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_who_looks_on_raises_nothing():
    """A backend that cannot serve the tensor leaves it to one that can."""
    x = torch.randn(4, 5, requires_grad=True)
    for backend in ("cuda", "cpu", "torch", "auto"):
        with use(backend):
            assert not tensor_stats(x, 1).requires_grad

    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return super().__torch_function__(function, types, args, kwargs or {})

    torch.testing.assert_close(
        tensor_stats(x.detach().as_subclass(Mine), 1).as_subclass(torch.Tensor), tensor_stats(x, 1)
    )


def test_names_are_the_cores():
    _cpu = pytest.importorskip("pyflash._cpu")
    assert _cpu.MOMENTS == MOMENTS and module._stats.kernels.keys() == {"cpu", "triton"}
