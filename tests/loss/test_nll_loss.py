"""The negative of the score of each target against torch's own."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, needs_values, run, use

import pyflash.functional as PF
from pyflash import nn
from pyflash.ops.core.registry import OPS
from tests.loss.class_scores import laid_out, targets_of

BACKENDS = backend_params("cpu", "triton")
every_backend = pytest.mark.parametrize("backend", BACKENDS)

CASES = [  # shape, layout, why it is here
    ((1, 1), "contiguous", "one class"),
    ((5, 3), "contiguous", "rows"),
    ((2300, 10), "contiguous", "several chunks of places"),
    ((7, 96), "row_strided", "stride is not the width"),
    ((8, 40), "transposed", "scores not adjacent: a copy"),
    ((2, 21, 9, 16), "contiguous", "columns: classes of an image"),
    ((2, 21, 4, 16), "channels_last", "classes that are adjacent"),
    ((3, 5, 700), "contiguous", "columns of several chunks"),
    ((2, 7, 1), "contiguous", "columns of one"),
]


@every_backend
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for (shape, layout, _why), weighted, reduction in itertools.product(CASES, (False, True), ("mean", "sum", "none")):
        x = laid_out(torch.randn(shape).log_softmax(1).to(dtype), layout)
        targets, weight = targets_of(x), torch.rand(shape[1]).add(0.1).to(dtype) if weighted else None

        def of(functional, x, targets=targets, weight=weight, reduction=reduction):
            weight = weight if weight is None else weight.to(x.dtype)
            return functional.nll_loss(x, targets, weight, reduction=reduction)

        dloss, adjacent = torch.randn_like(of(F, x)), x.contiguous()  # torch's gradient takes no others
        truth, theirs = run(partial(of, F), [adjacent], dloss, torch.float64), run(partial(of, F), [adjacent], dloss)
        theirs = [t if t.isfinite().all() else true.to(t.dtype) for t, true in zip(theirs, truth)]  # float16's sums
        ours = run(partial(of, PF), [x], dloss, backend=backend)
        assert_error_within(ours[:1], theirs[:1], truth[:1])
        assert_error_within(ours[1:], theirs[1:], truth[1:])


@every_backend
def test_bytes_a_score_alone_and_ignored_classes(backend):
    x = torch.randn(7, 5).log_softmax(1)
    for arguments in ((x, torch.arange(7, dtype=torch.uint8) % 5), (x[0], torch.tensor(3)), (x, torch.full((7,), 2))):
        for reduction in ("none", "mean", "sum"):
            options = dict(reduction=reduction, ignore_index=2)
            dloss = torch.ones(arguments[1].shape if reduction == "none" else ())
            theirs = run(partial(F.nll_loss, **options), arguments, dloss)
            ours = run(partial(PF.nll_loss, **options), arguments, dloss, backend=backend)
            for a, b in zip(ours, theirs):
                torch.testing.assert_close(a, b, equal_nan=True)


@every_backend
def test_weights_of_zero_as_torchs(backend):
    x, targets, weight = torch.randn(3, 4), torch.tensor([0, 3, 1]), torch.zeros(4)
    theirs, ours = (run(partial(f.nll_loss, target=targets, weight=weight), [x], torch.ones(()), backend=b)
                    for f, b in ((F, None), (PF, backend)))  # fmt: skip
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, equal_nan=True)


@every_backend
def test_a_target_that_is_no_class(backend):
    x = torch.randn(2, 5)
    for wrong in (5, -1, -100):
        if "triton" not in backend or x.is_cpu:
            with use(backend), pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
                PF.nll_loss(x, torch.tensor([1, wrong]), ignore_index=0)
    x, targets = torch.randn(3, 5), torch.tensor([1, 1 << 40, -7])  # as a compiled graph has it, which cannot look
    with use(backend):
        loss, total = OPS["nll_loss_fwd"](x, targets, None, -100, "mean", x.dtype, "auto")
        dx = OPS["nll_loss_bwd"](torch.ones(()), [3, 5], targets, None, total, -100, "mean", x.dtype, "auto")
    assert loss == -x[0, 1] and dx[0, 1] == -1 and dx.count_nonzero() == 1


@every_backend
def test_derivatives_of_every_order(backend):
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    targets = targets_of(x)
    for reduction in ("none", "mean", "sum"):
        with use(backend):
            loss = partial(PF.nll_loss, target=targets, weight=torch.rand(4).double(), reduction=reduction)
            assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x * x), (x,))
            assert torch.autograd.gradgradcheck(lambda x, loss=loss: loss(x * x), (x,))


@every_backend
def test_autocast_gives_float32(backend):
    x, targets = torch.randn(4, 9).bfloat16(), torch.tensor([0, 8, 3, 3])
    weight = torch.rand(9)
    with torch.autocast(x.device.type, torch.bfloat16), use(backend):
        ours = PF.nll_loss(x, targets, weight)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.nll_loss(x.float(), targets, weight))


def test_refusals_are_torchs():
    needs_values("cpu")
    x, target = torch.randn(4, 7), torch.tensor([1, 2, 3, 0])
    wrong = (
        dict(target=target.int()), dict(target=target[:3]), dict(target=target.view(2, 2)), dict(target=target + 5),
        dict(weight=torch.rand(6)), dict(weight=torch.rand(7).double()), dict(input=x.half(), weight=torch.rand(7)),
        dict(input=x.long()), dict(reduction="middle"), dict(target=[1, 2, 3, 0]),
    )  # fmt: skip
    for arguments in wrong:
        arguments = {"input": x, "target": target, **arguments}
        with pytest.raises(Exception) as theirs:
            F.nll_loss(**arguments)
        with use("cpu"), pytest.raises(type(theirs.value)) as ours:
            PF.nll_loss(**arguments)
        assert type(ours.value) is type(theirs.value)


@pytest.mark.slow
def test_compile_export_and_functorch():
    x, target = torch.randn(5, 7, requires_grad=True), torch.randint(7, (5,))

    def results(function):
        loss = function(x, target)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    with use("cpu"):
        compiled = torch.compile(lambda x, t: PF.nll_loss(x, t), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(results(compiled), results(F.nll_loss))
        dynamic = torch.compile(lambda x, t: PF.nll_loss(x, t), backend="aot_eager", dynamic=True)
        for n in (5, 6, 9):
            y, classes = torch.randn(n, 7, requires_grad=True), torch.randint(7, (n,))
            ours, theirs = dynamic(y, classes), F.nll_loss(y, classes)
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(torch.autograd.grad(ours, y), torch.autograd.grad(theirs, y))
        program = torch.export.export(nn.NLLLoss(), (x.detach(), target))
        assert any("pyflash.nll_loss_fwd" in str(node.target) for node in program.graph.nodes)
        of_rows = torch.func.vmap(lambda x, t: PF.nll_loss(x, t))(x, target)
        torch.testing.assert_close(of_rows, F.nll_loss(x, target, reduction="none"))


@every_backend
def test_the_module(backend):
    x, target = torch.randn(5, 6, 3, 2), torch.randint(6, (5, 3, 2))
    for options in ({}, {"weight": torch.rand(6)}, {"ignore_index": 2, "reduction": "sum"}):
        ours, theirs = nn.NLLLoss(**options), torch.nn.NLLLoss(**options)
        with use(backend):
            found = ours(x, target)
        torch.testing.assert_close(found, theirs(x, target))
        assert repr(ours) == repr(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_result_does_not_depend_on_threads():
    x, threads, found = torch.randn(5000, 7), torch.get_num_threads(), []
    targets = targets_of(x)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(run(partial(PF.nll_loss, target=targets), [x], torch.ones(()), backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found))
