"""Look-ups in a table against torch's own, the table's gradient against float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, needs_values, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from pyflash.ops.embedding.embedding import _bwd, _fwd, _renorm

BACKENDS = backend_params("cpu", "triton")

CASES = [  # rows, columns, shape of the indices, layout of the table, options, why it is here
    (1, 1, (1,), "contiguous", {}, "smallest"),
    (7, 5, (3, 4), "contiguous", {}, "narrower than a vector"),
    (11, 37, (60,), "contiguous", {}, "rows that come often, an odd width"),
    (40, 24, (2, 90), "contiguous", {}, "several blocks of the sort"),
    (5, 200, (9,), "contiguous", {}, "wider than what is summed at once"),
    (3, 72, (700,), "contiguous", {}, "sums longer than a chunk"),
    (12, 40, (3, 9), "contiguous", {"padding_idx": 0}, "a row without a gradient"),
    (12, 40, (3, 9), "contiguous", {"padding_idx": -1, "scale_grad_by_freq": True}, "padding from the end, means"),
    (12, 40, (40,), "contiguous", {"scale_grad_by_freq": True}, "means"),
    (9, 33, (6,), "row_strided", {}, "the stride of rows is not their width"),
    (9, 33, (6,), "transposed", {}, "elements of a row not adjacent: a copy"),
    (6, 8, (), "contiguous", {}, "one index, without a dimension"),
    (6, 8, (0, 3), "contiguous", {}, "no indices: the gradient is zero"),
    (6, 0, (3,), "contiguous", {}, "rows of nothing"),
    (0, 8, (0,), "contiguous", {}, "no rows"),
]


def make(case, dtype, index_dtype=torch.int64):
    rows, cols, shape, layout, options, _why = case
    if layout == "row_strided":
        weight = torch.randn(rows, 2 * cols)[:, :cols]
    elif layout == "transposed":
        weight = torch.randn(cols, rows).t()
    else:
        weight = torch.randn(rows, cols)
    indices = torch.randint(max(rows, 1), shape, dtype=index_dtype)
    if "padding_idx" in options:
        indices.flatten()[:2] = options["padding_idx"] % rows
    return indices, weight.to(dtype), options


def calls(function, options):
    return lambda indices, weight: function(indices, weight, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_torch(backend, dtype):
    """The rows themselves, and their gradient as near to float64 as torch's."""
    for number, case in enumerate(CASES):
        indices, weight, options = make(case, dtype, (torch.int64, torch.int32)[number % 2])
        dy = torch.randn(*indices.shape, weight.shape[1], dtype=dtype)
        truth = run(calls(F.embedding, options), [indices, weight], dy, torch.float64)
        theirs = run(by_cpu(calls(F.embedding, options)), [indices, weight], dy)
        ours = run(calls(PF.embedding, options), [indices, weight], dy, backend=backend)
        assert torch.equal(ours[0], theirs[0]) and ours[0].shape == theirs[0].shape, case[-1]
        assert_error_within(ours, theirs, truth, dy)


def test_past_the_caches_the_result_is_the_same():
    """A table of 40 MB, whose gradient is streamed, as are look-ups of 40 MB; and one column less, which is neither."""
    for cols in (1024, 1023):
        weight, indices = torch.randn(10000, cols), torch.randint(10000, (10000,))
        dy = torch.randn(10000, cols)
        with use("cpu"):
            y, dweight = _fwd(weight, indices, "cpu"), _bwd(dy, indices, 10000, 5, False, "cpu")
        assert torch.equal(y, weight[indices])
        torch.testing.assert_close(dweight, torch.ops.aten.embedding_dense_backward(dy, indices, 10000, 5, False))


def test_the_number_of_threads_changes_nothing():
    dy, indices = torch.randn(5000, 48), torch.randint(20, (5000,))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(_bwd(dy, indices, 20, -1, False, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_summed_in_float32(backend):
    """Ten thousand ones in bfloat16 end at 256 where each sum is rounded."""
    dy, indices = torch.ones(3000, 3, dtype=torch.bfloat16), torch.zeros(3000, dtype=torch.int64)
    with use(backend):
        dweight = _bwd(dy, indices, 2, -1, False, backend.partition(":")[0])
    assert dweight[0].tolist() == [3008.0] * 3 and not dweight[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_nan_infinity_and_signs_of_zero_are_kept(backend, dtype):
    weight = torch.tensor([[float("nan"), 1.0], [float("inf"), -0.0], [0.0, 2.0]], dtype=dtype)
    indices, dy = torch.tensor([1, 0, 1, 2]), torch.tensor([[1.0, -0.0]] * 3 + [[float("inf"), float("nan")]]).to(dtype)
    ours = run(PF.embedding, [indices, weight], dy, backend=backend)
    theirs = run(F.embedding, [indices, weight], dy)
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our, their, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(our.nan_to_num().signbit(), their.nan_to_num().signbit())
    with use(backend):  # the row of padding stays zero whatever comes
        dweight = _bwd(dy, indices, 3, 2, False, backend.partition(":")[0])
    assert not dweight[2].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm_type", [2, 1, 0, 3.5, -1.0, float("inf"), float("-inf")])
def test_max_norm(backend, dtype, norm_type):
    """The table is changed as torch changes it, and what is looked up is the changed row."""
    for cols, layout in ((37, "contiguous"), (1100, "contiguous"), (8, "transposed")):
        weight = torch.randn(9, cols) * torch.linspace(0.1, 3, 9)[:, None]
        weight = (weight if layout == "contiguous" else weight.t().contiguous().t()).to(dtype)
        indices = torch.tensor([[8, 0, 8], [3, 4, 0]])
        norms = torch.linalg.vector_norm(weight.double(), norm_type, 1)
        max_norm = norms[[0, 3, 4, 8]].mean().item()
        # By the CPU: torch's CUDA kernel takes powers of negative numbers, and rows whose elements are not adjacent for others.
        theirs, truth = (weight.to("cpu", dtype, copy=True).contiguous() for dtype in (weight.dtype, torch.float64))
        ours = weight.clone()
        expected = F.embedding(indices.cpu(), theirs, None, max_norm, norm_type)
        F.embedding(indices.cpu(), truth, None, max_norm, norm_type)
        expected, theirs, truth = (t.to(weight.device) for t in (expected, theirs, truth))
        version = ours._version
        with use(backend):
            y = PF.embedding(indices, ours, None, max_norm, norm_type)
        assert torch.equal(y, ours[indices]) and ours._version > version and y.shape == expected.shape
        assert_error_within((ours,), (theirs,), (truth,), floor_ulp=8)
        assert torch.equal(ours[[1, 2, 5, 6, 7]], weight[[1, 2, 5, 6, 7]])
        reference = _renorm.reference(weight, indices.flatten(), max_norm, norm_type)
        assert_error_within(reference, (expected.flatten(0, 1),), (truth[indices.flatten()],), floor_ulp=8)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_gradient_past_max_norm_is_the_rows(backend):
    weight, indices = (torch.randn(5, 6) * 4).requires_grad_(), torch.tensor([1, 1, 2])
    with use(backend):
        y = PF.embedding(indices, weight, max_norm=1.0)
    (dweight,) = torch.autograd.grad(y.sum(), weight)
    assert dweight.sum(1).tolist() == [0, 12, 6, 0, 0]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 1}, {"scale_grad_by_freq": True}, {"padding_idx": 0}], ids=str)
def test_gradients_of_gradients(backend, options):
    """scale_grad_by_freq is no derivative; the backward's own derivative is still that of a mean."""
    indices = torch.tensor([[1, 0, 1], [3, 1, 2]])
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)

    def backward(dy):
        y = PF.embedding(indices, weight, **options)
        return torch.autograd.grad(y, weight, dy, create_graph=True)[0]

    with use(backend):
        if not options:
            assert torch.autograd.gradcheck(lambda w: PF.embedding(indices, w), weight, fast_mode=True)
            assert torch.autograd.gradgradcheck(lambda w: PF.embedding(indices, w), weight, fast_mode=True)
        assert torch.autograd.gradcheck(backward, dy, fast_mode=True)
        assert torch.autograd.gradgradcheck(backward, dy, fast_mode=True)


def test_the_reference_is_the_kernel_in_torch():
    weight, dy, indices = torch.randn(6, 9), torch.randn(20, 9), torch.randint(6, (20,))
    torch.testing.assert_close(_fwd(weight, indices, "cpu"), _fwd(weight, indices, "torch"))
    for rest in ((-1, False), (2, True)):
        torch.testing.assert_close(_bwd(dy, indices, 6, *rest, "cpu"), _bwd(dy, indices, 6, *rest, "torch"))


@pytest.mark.parametrize("backend", [*BACKENDS, "auto", "torch"])
@pytest.mark.parametrize("wrong", [-1, 6, 2**31 - 1, -(2**31)])
def test_an_index_that_is_no_row(backend, wrong):
    needs_values(backend)
    for dtype in (torch.int32, torch.int64):
        indices = torch.tensor([[0, 1, wrong], [5, 2, 0]], dtype=dtype)
        weight = torch.randn(6, 8, requires_grad=True)
        before = weight.detach().clone()
        with use(backend), pytest.raises(IndexError, match="index out of range in self"):
            PF.embedding(indices, weight)
        with use(backend), pytest.raises(IndexError):
            PF.embedding(indices, weight, max_norm=0.1)
        assert backend == "torch" or torch.equal(weight, before)  # torch's changes some rows, then raises
        if backend.startswith("cpu"):
            with use(backend), pytest.raises(IndexError):
                _bwd(torch.randn(6, 8), indices.flatten(), 6, -1, False, backend.partition(":")[0])


def test_triton_takes_the_nearest_row():
    """What is behind the public function, where a GPU's values are not read."""
    weight, indices = torch.randn(6, 8), torch.tensor([-7, 2, 99])
    if backends.MISSING.get("triton"):
        pytest.skip(backends.MISSING["triton"])
    assert torch.equal(_fwd(weight, indices, "triton"), weight[[0, 2, 5]])
    dweight = _bwd(torch.ones(3, 8), indices, 6, -1, False, "triton")
    assert dweight.sum(1).tolist() == [8, 0, 8, 0, 0, 8]


WRONG = [
    (lambda f, w: f(torch.tensor([0]), w[0]), RuntimeError, "'weight' must be 2-D"),
    (
        lambda f, w: f(torch.tensor([0.0]), w),
        RuntimeError,
        "have one of the following scalar types: Long, Int; but got",
    ),
    (lambda f, w: f(torch.tensor([True]), w), RuntimeError, "have one of the following scalar types: Long, Int"),
    (lambda f, w: f(torch.tensor([0]), w, 6), AssertionError, "Padding_idx must be within num_embeddings"),
    (lambda f, w: f(torch.tensor([0]), w, -7), AssertionError, "Padding_idx must be within num_embeddings"),
    (lambda f, w: f([0], w), TypeError, "must be Tensor"),
    (lambda f, w: f(torch.tensor([0]), [1.0]), TypeError, "must be Tensor"),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("call, error, message", WRONG)
def test_what_torch_refuses(backend, call, error, message):
    weight = torch.randn(6, 8, requires_grad=True)
    with use(backend), pytest.raises(error, match=message):
        call(PF.embedding, weight)
    with pytest.raises(error):
        call(F.embedding, weight)
    with use("cpu"), pytest.raises(RuntimeError, match="to be on the same device, but input is on meta"):
        PF.embedding(torch.tensor([0], device="meta"), weight)


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_torch_serves():
    """Sparse gradients, and tables of other types."""
    weight, indices = torch.randn(5, 4, requires_grad=True), torch.tensor([1, 1, 3])
    before = pyflash.counts().copy()
    (dweight,) = torch.autograd.grad(PF.embedding(indices, weight, sparse=True).sum(), weight)
    assert dweight.is_sparse and dweight.to_dense().sum(1).tolist() == [0, 8, 0, 4, 0]
    assert (pyflash.counts() - before)["embedding", "torch", "a sparse gradient is torch's"] == 1
    with use("cpu"):
        assert torch.equal(PF.embedding(indices, weight.detach(), sparse=True), weight[indices])
        with pytest.raises(NotImplementedError, match="sparse gradient"):
            PF.embedding(indices, weight, sparse=True)
    for other in (torch.randn(5, 4, dtype=torch.complex64), torch.arange(10).view(5, 2)):
        assert torch.equal(PF.embedding(indices, other), other[indices])


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_module(backend, options):
    torch.manual_seed(1)
    ours = nn.Embedding(10, 6, **options)
    torch.manual_seed(1)
    theirs = torch.nn.Embedding(10, 6, **options)
    assert repr(ours) == repr(theirs) and torch.equal(ours.weight, theirs.weight)
    indices = torch.tensor([[1, 2, 2], [9, 0, 1]])
    with use(backend):
        y = ours(indices)
    torch.testing.assert_close(y, theirs(indices))
    torch.testing.assert_close(ours.weight, theirs.weight)
    y.square().sum().backward()
    theirs(indices).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_a_module_made_of_a_table():
    table = torch.randn(4, 3)
    module = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=1)
    assert type(module) is nn.Embedding and module.weight.requires_grad and module.padding_idx == 1
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3))
    pyflash.replace(model)
    assert type(model[0]) is nn.Embedding and pyflash.report(model).replaced == 1


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"max_norm": 0.5}], ids=str)
def test_compile(options):
    indices, weight = torch.tensor([[1, 3], [0, 1]]), torch.randn(5, 4)
    mine, other = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    with use("cpu"):
        y = compiled(lambda i, w: PF.embedding(i, w * 1 if "max_norm" not in options else w, **options))(indices, mine)
    expected = F.embedding(indices, other, **options)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, mine, dy), torch.autograd.grad(expected, other, dy))
    torch.testing.assert_close(mine, other)


def test_export_and_transforms():
    module, indices = nn.Embedding(5, 4), torch.tensor([[1, 3], [0, 1]])
    with use("cpu"):
        program = torch.export.export(module, (indices,))
        assert any("pyflash.embedding_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(indices), module(indices))
        weight = module.weight.detach()
        batched = torch.func.vmap(lambda i: PF.embedding(i, weight))(indices)
        gradient = torch.func.grad(lambda w: PF.embedding(indices, w).sum())(weight)
    assert torch.equal(batched, weight[indices]) and gradient.sum().item() == 16
