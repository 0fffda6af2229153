"""Attention of packed sequences against each sequence's own attention in float64, on every backend."""

from itertools import pairwise

import pytest
import torch
from helpers import assert_error_within, backend_params, on_its_device, run, use

import pyflash.functional as PF
from pyflash.ops.attention import reference
from pyflash.ops.core import backends, checks
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.philox import attention_keep

CPU = backend_params("cpu")
SEED = torch.tensor([-(2**62) + 12345])

LENGTHS = {  # queries, keys of each sequence; tokens of no sequence behind them
    "ragged": ((5, 0, 33, 1, 17), (9, 4, 0, 70, 17), (0, 0)),
    "equal": ((12, 12, 12), (20, 20, 20), (0, 0)),
    "runs": ((3, 3, 8, 8, 3), (6, 6, 6, 6, 6), (2, 5)),
    "one": ((40,), (140,), (0, 0)),
    "all empty": ((0, 0), (0, 3), (0, 0)),
    "no sequence": ((), (), (3, 2)),
}
SLOPES = torch.tensor([0.5, 0.1, 0.02, 0.3])
CASES = [  # lengths, heads, kv_heads, E, Ev, layout, options, why it is here
    ("ragged", 4, 4, 16, 16, "dense", {}, "a sequence without queries, one without keys"),
    ("ragged", 4, 2, 17, 24, "dense", {}, "two query heads a key head, E != Ev"),
    ("equal", 4, 1, 16, 16, "dense", {"is_causal": True}, "equal lengths are one dense call"),
    ("runs", 2, 2, 8, 8, "dense", {}, "neighbours of equal length; tokens of no sequence"),
    ("one", 4, 4, 64, 64, "dense", {"is_causal": True, "causal_align": "bottom_right"}, "one sequence"),
    ("ragged", 4, 4, 16, 16, "strided", {}, "rows with holes, columns not adjacent"),
    ("ragged", 4, 2, 16, 16, "qkv", {}, "one projection holds q, k and v"),
    ("ragged", 4, 4, 16, 16, "dense", {"is_causal": True}, "causal from the first token"),
    ("ragged", 4, 4, 16, 16, "dense", {"is_causal": True, "causal_align": "bottom_right"}, "causal from the last token"),
    ("ragged", 4, 2, 16, 16, "dense", {"window_size": (5, 3)}, "window"),
    ("ragged", 4, 2, 16, 16, "dense", {"window_size": (4, -1), "causal_align": "bottom_right"}, "left window from the end"),
    ("ragged", 4, 4, 16, 16, "dense", {"softcap": 2.0, "scale": -0.4}, "softcap, negative scale"),
    ("ragged", 4, 4, 16, 16, "dense", {"alibi_slopes": SLOPES, "causal_align": "bottom_right"}, "ALiBi"),
    ("runs", 4, 4, 16, 16, "dense", {"alibi_slopes": SLOPES * torch.rand(5, 1)}, "ALiBi of each sequence"),
    ("runs", 4, 2, 16, 16, "dense", {"dropout_p": 0.3}, "dropout"),
    ("ragged", 4, 4, 16, 16, "dense", {"dropout_p": 0.2, "softcap": 5.0, "alibi_slopes": SLOPES, "is_causal": True,
                                       "window_size": (9, 40)}, "everything"),
    ("all empty", 2, 2, 8, 8, "dense", {}, "no scores at all"),
    ("no sequence", 2, 2, 8, 8, "dense", {}, "tokens, but no sequence"),
    ("ragged", 0, 2, 8, 8, "dense", {}, "no query heads"),
]  # fmt: skip
ON_TRITON = {  # few: the interpreter is slow
    "two query heads a key head, E != Ev", "neighbours of equal length; tokens of no sequence", "dropout",
    "ALiBi of each sequence", "causal from the last token", "no sequence", "no query heads",
}  # fmt: skip


def offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def tensors(case, dtype=torch.float32):
    """(q, k, v), (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k), (dout, dlse)"""
    lengths, heads, kv_heads, dim, dim_v, layout, _, _ = case
    of_q, of_k, rest = LENGTHS[lengths]
    total_q, total_k = sum(of_q) + rest[0], sum(of_k) + rest[1]
    q, k = torch.randn(total_q, heads, dim, dtype=dtype), torch.randn(total_k, kv_heads, dim, dtype=dtype)
    v = torch.randn(total_k, kv_heads, dim_v, dtype=dtype)
    if layout == "strided":
        q = torch.randn(heads, total_q, dim + 3, dtype=dtype)[..., :dim].transpose(0, 1)
        k = torch.randn(dim, kv_heads, total_k, dtype=dtype).permute(2, 1, 0)
    elif layout == "qkv":
        k, v = torch.randn(total_k, 2 * kv_heads, dim, dtype=dtype).split(kv_heads, 1)
    packing = offsets(of_q), offsets(of_k, torch.int64), max(of_q, default=0), max(of_k, default=0) + 3
    return (q, k, v), packing, (torch.randn(total_q, heads, dim_v), torch.randn(heads, total_q))


def one_by_one(packing, dropout_p=0.0, is_causal=False, scale=None, causal_align="top_left", window_size=(-1, -1),
               alibi_slopes=None, softcap=0.0, seed=None):  # fmt: skip
    """A function of q, k, v that says what `attention_varlen` means: each sequence through plain matrix operations."""
    of_q, of_k = (list(pairwise(cu.tolist())) for cu in packing[:2])

    def call(q, k, v):
        acc = acc_dtype(q.dtype)
        out = torch.zeros(q.shape[0], q.shape[1], v.shape[2], dtype=acc)
        lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=acc)
        group = q.shape[1] // k.shape[1]
        for b, ((q0, q1), (k0, k1)) in enumerate(zip(of_q, of_k)):
            if q0 == q1 or k0 == k1:
                continue
            one_q, one_k, one_v = (x.to(acc).transpose(0, 1) for x in (q[q0:q1], k[k0:k1], v[k0:k1]))
            one_k, one_v = (x.repeat_interleave(group, 0) for x in (one_k, one_v))
            s = one_q @ one_k.mT * (q.shape[2] ** -0.5 if scale is None else scale)
            s = softcap * torch.tanh(s / softcap) if softcap else s
            distance = torch.arange(k1 - k0) - torch.arange(q1 - q0)[:, None]
            if causal_align == "bottom_right":
                distance = distance - (k1 - k0) + (q1 - q0)
            if alibi_slopes is not None:
                slopes = alibi_slopes[b] if alibi_slopes.dim() == 2 else alibi_slopes
                s = s - slopes.to(acc)[:, None, None] * distance.abs()
            left, right = window_size[0], 0 if is_causal else window_size[1]
            seen = torch.ones_like(distance, dtype=torch.bool)
            seen = seen & (distance >= -left) if left >= 0 else seen
            seen = seen & (distance <= right) if right >= 0 else seen
            w, one_lse = reference.softmax_and_lse(s.masked_fill(~seen, -torch.inf))
            if dropout_p:
                # as if the sequences before this one had been padded to its size: [batch, heads, ...]
                w = w * attention_keep(seed, b + 1, *w.shape, dropout_p)[b] / (1 - dropout_p)
            out = torch.cat([out[:q0], (w @ one_v).transpose(0, 1), out[q1:]])
            lse = torch.cat([lse[:, :q0], one_lse, lse[:, q1:]], 1)
        return out.to(q.dtype), lse

    return call


def compare(backend, case, dtype=torch.float32):
    qkv, packing, (dout, dlse) = tensors(case, dtype)
    options = on_its_device({"seed": SEED, **case[6]} if case[6].get("dropout_p") else case[6])
    theirs = one_by_one(packing, **options)

    def ours(q, k, v):
        return PF.attention_varlen(q, k, v, *packing, return_lse=True, **options)

    truth_lse = theirs(*(x.double() for x in qkv))[1]
    douts = dout, torch.where(truth_lse == -torch.inf, 0.0, dlse)  # such a row's gradient of lse is nobody's

    def on_all(function):  # what nothing depends on has a gradient of zeros here
        return lambda q, k, v: tuple(o + 0 * (q.sum() + k.sum() + v.sum()) for o in function(q, k, v))

    assert_error_within(
        run(ours, qkv, douts, dtype, backend), run(on_all(theirs), qkv, douts, dtype),
        run(on_all(theirs), qkv, douts, torch.float64), dout, floor_ulp=8,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", backend_params("cpu", "torch"))
def test_matches_each_sequence_alone(backend, case):
    compare(backend, case)


@pytest.mark.parametrize("case", [c for c in CASES if c[-1] in ON_TRITON], ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", backend_params("triton"))
def test_matches_on_triton(backend, case):
    compare(backend, case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", CPU)
def test_dtypes(backend, dtype):
    for case in (CASES[1], CASES[7]):
        compare(backend, case, dtype)


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_bfloat16_on_triton(backend):
    compare(backend, ("runs", 2, 1, 16, 16, "dense", {"is_causal": True}, ""), torch.bfloat16)


@pytest.mark.parametrize("backend", backend_params())
def test_dropout_is_that_of_padded_sequences(backend):
    """v is the identity, so out is the matrix of weights; the mask is `attention_keep`'s of a padded batch."""
    lengths, heads, longest = (3, 7, 7, 2), 2, 7
    seed = on_its_device(SEED)
    keep = attention_keep(seed, len(lengths), heads, longest, longest, 0.4)
    q, k = torch.randn(2, sum(lengths), heads, 8)
    v = torch.cat([torch.eye(n, longest) for n in lengths])[:, None].expand(-1, heads, -1)
    cu = offsets(lengths)
    with use(backend):
        w = PF.attention_varlen(q, k, v, cu, cu, longest, longest, dropout_p=0.4, seed=seed)
        assert (PF.attention_varlen(q, k, v, cu, cu, longest, longest, dropout_p=1.0) == 0).all()
    for b, (start, stop) in enumerate(pairwise(cu.tolist())):
        n = stop - start
        assert torch.equal(w[start:stop, :, :n].transpose(0, 1) != 0, keep[b, :, :n, :n])


def test_dropout_draws_its_seed():
    (q, k, v), packing, _ = tensors(CASES[3])
    with use("cpu"):
        torch.manual_seed(1)
        a, b = (PF.attention_varlen(q, k, v, *packing, dropout_p=0.5) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(a, PF.attention_varlen(q, k, v, *packing, dropout_p=0.5)) and not torch.equal(a, b)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.slow
def test_derivatives(backend):
    lengths_q, lengths_k = (2, 0, 3), (3, 1, 2)
    packing = offsets(lengths_q), offsets(lengths_k), 3, 3
    q = torch.randn(6, 2, 2, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(6, 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def call(q, k, v):
        out, lse = PF.attention_varlen(
            q, k, v, *packing, causal_align="bottom_right", window_size=(-1, 1), softcap=3.0, dropout_p=0.2, seed=SEED,
            return_lse=True,
        )  # fmt: skip
        return out, lse[:, :-1]  # without the token of no sequence

    with use(backend):
        assert torch.autograd.gradcheck(call, (q, k, v))
        assert torch.autograd.gradgradcheck(call, (q, k, v))
        assert torch.autograd.gradcheck(lambda k: call(q.detach(), k, v.detach())[1], (k,))  # dlse alone


def test_slopes_that_need_a_gradient_go_to_torch():
    (q, k, v), packing, _ = tensors(CASES[0])
    slopes = SLOPES.double().requires_grad_()
    q, k, v = (x.double() for x in (q, k, v))
    with use("cpu"), pytest.raises(NotImplementedError, match="alibi_slopes that need a gradient"):
        PF.attention_varlen(q, k, v, *packing, alibi_slopes=slopes)
    with use("torch"):
        assert torch.autograd.gradcheck(
            lambda s: PF.attention_varlen(q, k, v, *packing, alibi_slopes=s), (slopes,), fast_mode=True
        )


def test_torch_func():
    (q, k, v), packing, _ = tensors(("runs", 2, 2, 4, 4, "dense", {}, ""))
    with use("cpu"):

        def call(q):
            return PF.attention_varlen(q, k, v, *packing)

        out, tangent = torch.func.jvp(call, (q,), (torch.ones_like(q),))
        torch.testing.assert_close(torch.func.vmap(call)(torch.stack([q, 2 * q]))[0], out)
        _, pull = torch.func.vjp(call, q)
        torch.testing.assert_close((pull(torch.ones_like(out))[0]).sum(), tangent.sum())


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_compile_and_export(backend):
    (q, k, v), packing, _ = tensors(("runs", 2, 2, 8, 8, "dense", {}, ""))
    q.requires_grad_()

    class Module(torch.nn.Module):
        def forward(self, q, k, v, cu_q, cu_k):
            with use(backend):
                return PF.attention_varlen(q, k, v, cu_q, cu_k, 8, 8, is_causal=True)

    def loss(*tensors):
        return Module()(*tensors).sin().sum()

    eager = torch.autograd.grad(loss(q, k, v, *packing[:2]), q)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(q, k, v, *packing[:2]), q)[0], eager)
    program = torch.export.export(Module(), (q.detach(), k, v, *packing[:2]))
    assert any("pyflash.attention_varlen_fwd" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(q, k, v, *packing[:2]), Module()(q, k, v, *packing[:2]))
    # The graph meets offsets that nobody checked when it was made.
    wrong = packing[0] + torch.tensor([0, 0, 0, 0, 0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens_q ends at 29, past the 27 tokens"):
        program.module()(q, k, v, wrong, packing[1])


def test_compile_with_changing_lengths():
    """One tensor is q, k and v, and one says where the sequences are, which Dynamo would not take twice."""

    def call(x, cu, longest):
        with use("cpu"):
            return PF.attention_varlen(x, x, x, cu, cu, longest, longest, is_causal=True)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (5, 9):
        x, cu = torch.randn(2 * n, 2, 8, requires_grad=True), offsets((n - 1, n + 1))
        expected = call(x, cu, n + 1)
        out = compiled(x, cu, n + 1)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(*(torch.autograd.grad(o.sin().sum(), x)[0] for o in (out, expected)))


def test_fake_tensors_are_not_read():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, cu = torch.empty(9, 4, 8), torch.empty(4, dtype=torch.int32)
        for backend in ("cpu", "torch"):
            with use(backend):
                out, lse = PF.attention_varlen(q, q[:, :2], q[:, :2, :3], cu, cu, 5, 5, return_lse=True)
            assert out.shape == (9, 4, 3) and lse.shape == (4, 9)
    q, cu = torch.empty(9, 4, 8, device="meta"), torch.empty(4, dtype=torch.int32, device="meta")
    with use("torch"):
        assert PF.attention_varlen(q, q, q, cu, cu, 5, 5).is_meta


def test_auto_takes_ours():
    (q, k, v), packing, _ = tensors(CASES[1])
    before = backends.counts["attention_varlen", "cpu", ""]
    with use("auto"):
        PF.attention_varlen(q, k, v, *packing)
    assert backends.counts["attention_varlen", "cpu", ""] == before + 1


def test_autocast():
    (q, k, v), packing, _ = tensors(CASES[1])
    with torch.autocast("cpu", torch.bfloat16), use("cpu"):
        assert PF.attention_varlen(q, k, v, *packing).dtype == torch.bfloat16


CU = offsets((3, 4))
BAD = [  # what is changed of the call below, exception, message
    ({"cu_seqlens_q": torch.tensor([0, 4, 3])}, ValueError, "cu_seqlens_q goes from 4 to 3, expected ascending"),
    ({"cu_seqlens_k": torch.tensor([1, 3, 7])}, ValueError, "cu_seqlens_k starts at 1, expected 0"),
    ({"cu_seqlens_k": torch.tensor([0, 4, 8])}, ValueError, "cu_seqlens_k ends at 8, past the 7 tokens"),
    ({"cu_seqlens_q": torch.tensor([0, -3, 7])}, ValueError, "from 0 to -3"),
    ({"max_seqlen_q": 3}, ValueError, "max_seqlen_q is 3, but cu_seqlens_q has a sequence of 4"),
    ({"max_seqlen_k": 0}, ValueError, "max_seqlen_k is 0, but cu_seqlens_k has a sequence of 3"),
    ({"cu_seqlens_q": torch.tensor([0.0, 3, 7])}, RuntimeError, "cu_seqlens_q is torch.float32"),
    ({"cu_seqlens_q": CU[None]}, ValueError, r"cu_seqlens_q has shape \(1, 3\), expected one dimension"),
    ({"cu_seqlens_q": torch.tensor([0, 7])}, ValueError, "have 2 and 3 elements"),
    ({"cu_seqlens_q": CU[:0], "cu_seqlens_k": CU[:0]}, ValueError, "have 0 and 0 elements"),
    ({"cu_seqlens_k": CU.to("meta")}, RuntimeError, "cu_seqlens_k is on meta, q on cpu"),
    (
        dict.fromkeys("kv", torch.ones(7, 2, 8).int()) | {"q": torch.ones(7, 4, 8).int()},
        RuntimeError,
        "q is torch.int32",
    ),
    ({"q": torch.ones(7, 4, 8).cfloat()}, NotImplementedError, "q is torch.complex64"),
    ({"q": torch.randn(1, 7, 4, 8)}, ValueError, "4, 3, 3 dimensions, expected 3"),
    ({"k": torch.randn(7, 2, 9)}, ValueError, "k has head_dim 9, expected 8"),
    ({"v": torch.randn(6, 2, 8)}, ValueError, r"v has shape \(6, 2, 8\)"),
    ({"k": torch.randn(7, 3, 8), "v": torch.randn(7, 3, 8)}, ValueError, "k has 3 heads, expected a divisor of q's 4"),
    ({"k": torch.randn(7, 0, 8), "v": torch.randn(7, 0, 8)}, ValueError, "k has 0 heads"),
    ({"v": torch.randn(7, 2, 8).double()}, RuntimeError, "v is torch.float64, expected torch.float32 as q"),
    ({"dropout_p": 1.5}, ValueError, "dropout_p is 1.5"),
    ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
    ({"causal_align": "middle"}, ValueError, "causal_align is 'middle'"),
    ({"alibi_slopes": torch.ones(3, 4)}, ValueError, r"alibi_slopes has shape \(3, 4\), expected \(4,\) or \(2, 4\)"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[m for *_, m in BAD])
def test_bad_input(change, error, message):
    call = {"q": torch.randn(7, 4, 8), "k": torch.randn(7, 2, 8), "v": torch.randn(7, 2, 8), "cu_seqlens_q": CU,
            "cu_seqlens_k": CU, "max_seqlen_q": 4, "max_seqlen_k": 4, **change}  # fmt: skip
    for backend in ("cpu", "torch", "auto", *(["triton"] if backends.INTERPRETING else [])):
        with use(backend), pytest.raises(error, match=f"pyflash.attention_varlen: .*{message}"):
            PF.attention_varlen(**call)


def test_values_on_a_device_are_read_only_when_asked(monkeypatch):
    class OnDevice:  # stands for a CUDA tensor
        is_cpu, device = False, torch.device("cuda")

    assert not checks.readable(OnDevice()) and not checks.readable(torch.empty(3, device="meta"))
    monkeypatch.setattr(checks, "CHECK_VALUES", True)
    assert checks.readable(OnDevice()) and not checks.readable(torch.empty(3, device="meta"))
