"""Bags of rows against torch's own, and float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, needs_values, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.embedding.bag import _bwd, _bwd_per_sample, _fwd

BACKENDS = backend_params("cpu", "triton")
MODES = ("sum", "mean", "max")

CASES = [  # rows, columns, shape of the indices, offsets, options, why it is here
    (1, 1, (1,), [0], {}, "smallest"),
    (7, 37, (12,), [0, 3, 3, 7], {}, "an empty bag, an odd width, rows that come often"),
    (7, 5, (9,), [0, 2, 9], {"include_last_offset": True}, "the end of the last bag is given"),
    (9, 70, (4, 6), None, {}, "bags of one length"),
    (5, 24, (11,), [0, 4, 6, 6], {"padding_idx": 2}, "rows that are left out"),
    (5, 24, (5, 3), None, {"padding_idx": -5}, "padding from the end"),
    (3, 72, (290,), [0, 1, 280], {}, "sums longer than a chunk"),
    (2, 8, (40,), [0, 30], {}, "rows that come more often than are read at once"),
    (6, 200, (5,), [0, 2], {}, "wider than what is summed at once"),
    (4, 8, (0,), [0, 0], {}, "empty bags alone"),
    (4, 8, (0, 3), None, {}, "no bags"),
]


def make(case, dtype, mode, index_dtype=torch.int64):
    rows, cols, shape, offsets, options, _why = case
    indices = torch.randint(rows, shape, dtype=index_dtype)
    if "padding_idx" in options and mode != "mean":
        indices.flatten()[:5] = options["padding_idx"] % rows  # a bag of padding alone
    weight = torch.randn(rows, cols).to(dtype)
    return (
        indices,
        weight,
        offsets if offsets is None else torch.tensor(offsets, dtype=index_dtype),
        {"mode": mode, **options},
    )


def calls(function, options):
    return lambda indices, weight, offsets, per_sample=None: function(
        indices, weight, offsets, per_sample_weights=per_sample, **options
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_matches_float64(backend, dtype, mode):
    if backend == "triton" and dtype in (torch.float64, torch.float16):
        pytest.skip("the interpreter takes seconds; the other types take every path")
    for number, case in enumerate(CASES):
        if backend == "triton" and case[2][0] > 100:
            continue  # the interpreter takes seconds
        *inputs, options = make(case, dtype, mode, (torch.int64, torch.int32)[number % 2])
        bags = inputs[0].shape[0] if inputs[2] is None else len(inputs[2]) - ("include_last_offset" in options)
        dy = torch.randn(bags, case[1], dtype=dtype)
        if mode == "sum" and number % 3:
            inputs.append(torch.randn(inputs[0].shape).to(dtype))
        ours = run(calls(PF.embedding_bag, options), inputs, dy, backend=backend)
        theirs = run(by_cpu(calls(F.embedding_bag, options)), inputs, dy)
        truth = run(calls(F.embedding_bag, options), inputs, dy, torch.float64)
        largest = max((t.abs().max() for t in (inputs[1], *inputs[3:]) if t.numel()), default=torch.tensor(1.0))
        assert_error_within(ours, theirs, truth, dy * largest, torch.as_tensor(largest), floor_ulp=8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scale_grad_by_freq(backend):
    """As `embedding` has it, of which a sum is taken: torch's bags on a CPU divide by the count of another index."""
    indices, weight, dy = torch.randint(5, (6, 7)), torch.randn(5, 9), torch.randn(6, 9)

    def bags(weight, function):
        return function(indices, weight, mode="sum", padding_idx=2, scale_grad_by_freq=True)

    def rows(weight):
        found = F.embedding(indices, weight, 2, scale_grad_by_freq=True)
        return torch.where(indices[..., None] == 2, 0, found).sum(1)

    ours = run(lambda weight: bags(weight, PF.embedding_bag), [weight], dy, backend=backend)
    assert_error_within(ours, run(rows, [weight], dy), run(rows, [weight], dy, torch.float64), dy)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_places_behind_the_last_bag_count_nowhere(backend):
    """torch reads memory that nobody wrote in the backward."""
    indices, offsets = torch.randint(5, (9,)), torch.tensor([0, 2, 7])
    factors, weight = torch.randn(9, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    with use(backend):
        y = PF.embedding_bag(indices, weight, offsets, mode="sum", per_sample_weights=factors, include_last_offset=True)
    expected = F.embedding_bag(indices[:7], weight, offsets[:2], mode="sum", per_sample_weights=factors[:7])
    torch.testing.assert_close(y, expected)
    dy = torch.randn(2, 6)
    found, wanted = (torch.autograd.grad(t, (weight, factors), dy) for t in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_the_number_of_threads_changes_nothing():
    weight, indices, bounds = torch.randn(50, 48), torch.randint(50, (6000,)), torch.arange(0, 6001, 30)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, counts, winners = _fwd(weight, indices, bounds, None, "mean", 3, "cpu")
            found.append((y, _bwd(y, indices, bounds, None, counts, winners, 50, "mean", 3, False, "cpu")))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_first_of_equals_wins_and_nan_where_it_is_the_first(backend):
    weight = torch.tensor([[1.0, 2.0], [1.0, float("nan")], [0.0, 5.0]], requires_grad=True)
    indices, offsets = torch.tensor([0, 1, 2, 1, 0, 2]), torch.tensor([0, 3])
    with use(backend):
        y = PF.embedding_bag(indices, weight, offsets, mode="max")
    expected = F.embedding_bag(indices, weight, offsets, mode="max")
    torch.testing.assert_close(y, expected, equal_nan=True)
    dy = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    assert torch.equal(*(torch.autograd.grad(t, weight, dy)[0] for t in (y, expected)))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_gradients(backend, mode):
    indices, offsets = torch.tensor([1, 0, 3, 1, 2, 3]), torch.tensor([0, 2, 2, 5])
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(6, dtype=torch.float64, requires_grad=True)
    leaves = (weight, factors) if mode == "sum" else (weight,)

    def function(weight, factors=None):
        return PF.embedding_bag(indices, weight, offsets, mode=mode, per_sample_weights=factors, padding_idx=2)

    with use(backend):
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_references_are_the_kernels_in_torch(backend):
    weight, indices, bounds = torch.randn(6, 9), torch.randint(6, (20,)), torch.tensor([0, 5, 5, 18])
    factors, dy = torch.randn(20), torch.randn(3, 9)
    for mode, per_sample in (("sum", factors), ("mean", None), ("max", None)):
        args = weight, indices, bounds, per_sample, mode, 1
        ours, theirs = _fwd(*args, backend), _fwd(*args, "torch")
        torch.testing.assert_close(ours, theirs)
        args = dy, indices, bounds, per_sample, *ours[1:], 6, mode, 1, mode != "max"
        torch.testing.assert_close(_bwd(*args, backend), _bwd(*args, "torch"))
    args = dy, weight, indices, bounds, 1
    torch.testing.assert_close(_bwd_per_sample(*args, backend), _bwd_per_sample(*args, "torch"))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_max_norm(backend):
    indices, weight = torch.tensor([[8, 0, 8], [3, 4, 0]]), torch.randn(9, 37) * 2
    theirs, ours = weight.clone(), weight.clone()
    expected = F.embedding_bag(indices, theirs, max_norm=5.0)
    with use(backend):
        torch.testing.assert_close(PF.embedding_bag(indices, ours, max_norm=5.0), expected)
    torch.testing.assert_close(ours, theirs)


I = torch.tensor
WRONG = [  # arguments after the weight, options
    (
        (I([0, 9]), I([0])),
        {},
        RuntimeError,
        "valid range|Expected idx >= 0 && idx < num_embeddings but found idx to be",
    ),
    (
        (I([0, -1]), I([0])),
        {"mode": "max"},
        RuntimeError,
        "Expected idx >= 0 && idx < num_embeddings but found idx to be -1",
    ),
    ((I([0, 1]), I([1])), {}, RuntimeError, r"offsets\[0\] has to be 0"),
    ((I([0, 1]), I([0, 5])), {}, RuntimeError, r"offsets\[-1\] can not be greater than input's length 2 but got"),
    ((I([0, 1]), I([0]).float()), {}, RuntimeError, "one of the following scalar types: Long, Int"),
    ((I([0.0, 1]), I([0])), {}, RuntimeError, "one of the following scalar types: Long, Int"),
    ((I([0, 1]), None), {}, ValueError, "offsets has to be a 1D Tensor but got None"),
    ((I([[0, 1]]), I([0])), {}, ValueError, "if input is 2D, then offsets has to be None"),
    ((I([[[0]]]), None), {}, ValueError, "input has to be 1D or 2D"),
    ((I([0]), I([0])), {"mode": "median"}, ValueError, "mode has to be one of sum, mean or max"),
    ((I([0]), I([0])), {"mode": "max", "scale_grad_by_freq": True}, ValueError, "max mode does not support scaling"),
    ((I([0]), I([0])), {"mode": "max", "sparse": True}, ValueError, "max mode does not support sparse"),
    ((I([0]), I([0])), {"per_sample_weights": torch.ones(2)}, ValueError, "must have the same shape as the input"),
    ((I([0]), I([0])), {"per_sample_weights": torch.ones(1)}, NotImplementedError, "only supported for mode='sum'"),
    ((I([0]), I([0])), {"per_sample_weights": torch.ones(1).double(), "mode": "sum"}, RuntimeError, "the same type"),
    ((I([0]), I([0])), {"padding_idx": 9}, RuntimeError, "padding_idx must be within the number of embeddings"),
    ((I([0]), I([]).long()), {"include_last_offset": True}, RuntimeError, "offset should be at least 1"),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "triton", "torch"])
def test_what_torch_refuses(backend):
    needs_values(backend)
    weight = torch.randn(6, 8)
    for (indices, offsets), options, error, message in WRONG:
        with use(backend), pytest.raises(error, match=message):
            PF.embedding_bag(indices, weight, offsets, **options)
    if backend in ("cpu", "triton"):  # torch raises of some kinds, and reads other memory of others
        with use(backend), pytest.raises(RuntimeError, match="expected ascending"):
            PF.embedding_bag(I([0, 1, 2]), weight, I([0, 2, 1]))
    with use(backend), pytest.raises(ValueError, match="weight has to be a 2D"):
        PF.embedding_bag(I([0]), weight[0], I([0]))
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="expected ascending"):
            _fwd(weight, I([0, 1, 2]), I([0, 2, 1, 3]), None, "sum", -1, "cpu")
        for bounds, indices in (([0, 4], [0, 1, 2]), ([0, 3], [0, 1, 6])):
            args = torch.randn(1, 8), I(indices), I(bounds), None, I([1]), torch.empty(0, 0).long(), 6, "sum", -1, False
            with pytest.raises(RuntimeError):
                _bwd(*args, "cpu")
            with pytest.raises(RuntimeError):
                _bwd_per_sample(args[0], weight, *args[1:3], -1, "cpu")


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_torch_serves():
    weight, indices = torch.randn(5, 4, requires_grad=True), torch.tensor([[1, 1, 3]])
    before = pyflash.counts().copy()
    (dweight,) = torch.autograd.grad(PF.embedding_bag(indices, weight, sparse=True).sum(), weight)
    assert dweight.is_sparse
    assert (pyflash.counts() - before)["embedding_bag", "torch", "a sparse gradient is torch's"] == 1
    with use("cpu"), pytest.raises(NotImplementedError, match="sparse gradient"):
        PF.embedding_bag(indices, weight, sparse=True)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("options", [{"mode": "sum"}, {"padding_idx": 2}, {"mode": "max"}, {"max_norm": 1.0}], ids=str)
def test_module(backend, options):
    torch.manual_seed(1)
    ours = nn.EmbeddingBag(10, 6, **options)
    torch.manual_seed(1)
    theirs = torch.nn.EmbeddingBag(10, 6, **options)
    assert repr(ours) == repr(theirs) and torch.equal(ours.weight, theirs.weight)
    indices, offsets = torch.tensor([1, 2, 2, 9, 0, 1]), torch.tensor([0, 2])
    with use(backend):
        y = ours(indices, offsets)
    torch.testing.assert_close(y, theirs(indices, offsets))
    y.square().sum().backward()
    theirs(indices, offsets).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    made = nn.EmbeddingBag.from_pretrained(ours.weight.detach())
    assert type(made) is nn.EmbeddingBag and made(indices, offsets).shape == (2, 6)


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_compile_export_and_transforms(mode):
    module, indices, offsets = nn.EmbeddingBag(5, 4, mode=mode), torch.tensor([1, 3, 0, 1]), torch.tensor([0, 3])
    expected = F.embedding_bag(indices, module.weight, offsets, mode=mode)
    with use("cpu"):
        y = torch.compile(module, fullgraph=True, backend="aot_eager")(indices, offsets)
        torch.testing.assert_close(y, expected)
        dy = torch.randn_like(y)
        found = torch.autograd.grad(y, module.weight, dy)
        torch.testing.assert_close(found, torch.autograd.grad(expected, module.weight, dy))
        program = torch.export.export(module, (indices, offsets))
        assert any("pyflash.embedding_bag_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(indices, offsets), module(indices, offsets))
        weight = module.weight.detach()
        torch.func.grad(lambda w: PF.embedding_bag(indices, w, offsets, mode=mode).sum())(weight)
