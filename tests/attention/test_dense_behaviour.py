"""Fused attention beside its values: dropout, threads, derivatives, compiled graphs, what is refused, what `auto` asks."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import run, use
from property_tests import given, settings, st

import pyflash
import pyflash.functional as PF
from pyflash.kernels.attention.options import Options
from pyflash.ops.attention import dense, reference
from pyflash.ops.core import backends
from pyflash.ops.core.philox import attention_keep
from tests.attention.attention_helpers import CPU, HALVES, compare, plain, tensors


# ---- dropout --------------------------------------------------------------------------------------------------------
def test_philox_known_answers():
    """From the authors' Random123 distribution, kat_vectors."""
    from pyflash.ops.core.philox import philox_words

    def words(seed, *counter):
        return [hex(int(w)) for w in philox_words(torch.tensor([seed]), [torch.tensor([c]) for c in counter])]

    assert words(0, 0, 0, 0, 0) == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    ones = 0xFFFFFFFF
    assert words(-1, ones, ones, ones, ones) == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


@pytest.mark.parametrize("backend", CPU)
def test_dropout_keeps_the_same_weights_everywhere(backend):
    """v is the identity: out is the matrix of weights."""
    seed = torch.tensor([987654321987654321])
    q, k, v = torch.randn(2, 3, 50, 8), torch.randn(2, 3, 150, 8), torch.eye(150).expand(2, 3, 150, 150)
    with use(backend):
        w = PF.attention(q, k, v, dropout_p=0.4, seed=seed)
    assert torch.equal(w != 0, attention_keep(seed, 2, 3, 50, 150, 0.4))


def test_dropout_statistics():
    keep = attention_keep(torch.tensor([3]), 4, 4, 64, 256, 0.1)
    n = keep.numel()
    assert abs(keep.float().mean().item() - 0.9) < 4 * math.sqrt(0.09 / n)
    assert torch.unique(keep.flatten(2).float().mean(-1)).numel() > 8  # heads differ
    with use("cpu"):
        q = torch.randn(1, 1, 9, 8)
        torch.manual_seed(1)
        a, b = (PF.scaled_dot_product_attention(q, q, q, dropout_p=0.5) for _ in range(2))
        torch.manual_seed(1)
        c = PF.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
        assert torch.equal(a, c) and not torch.equal(a, b)
        assert (PF.scaled_dot_product_attention(q, q, q, dropout_p=1.0) == 0).all()


# ---- behaviour ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("heads, rows, keys", [(1, 200, 700), (3, 70, 300)])
def test_the_same_bits_whatever_the_threads(heads, rows, keys):
    qkv, dout = tensors((1, heads, heads, rows, keys, 16, 16, "bhld", ""))
    mask = torch.randn(rows, keys)
    before = torch.get_num_threads()
    _, ours, _ = plain(mask, dropout_p=0.1)
    results = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            results.append(run(ours, [*qkv, mask], dout, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@pytest.mark.parametrize("backend", CPU)
def test_nan_and_infinity_propagate_as_in_torch(backend):
    q, k, v = (torch.randn(1, 1, 12, 8) for _ in range(3))
    for place, value in (("q", math.nan), ("k", math.nan), ("v", math.nan), ("v", math.inf), ("q", math.inf)):
        changed = {"q": q.clone(), "k": k.clone(), "v": v.clone()}
        changed[place][0, 0, 5, 2] = value
        with use(backend):
            out = PF.scaled_dot_product_attention(changed["q"], changed["k"], changed["v"])
        expected = F.scaled_dot_product_attention(changed["q"], changed["k"], changed["v"], torch.zeros(12, 12))
        torch.testing.assert_close(out, expected, equal_nan=True)


def test_second_derivatives():
    q, k, v = (torch.randn(1, 2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in range(3))
    k, v = (t[:, :1].detach().requires_grad_() for t in (k, v))
    mask = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    seed = torch.tensor([7])

    def call(q, k, v, mask):
        return PF.attention(
            q, k, v, mask, is_causal=True, enable_gqa=True, return_lse=True, dropout_p=0.2, seed=seed, softcap=3.0
        )

    with use("cpu"):
        assert torch.autograd.gradcheck(call, (q, k, v, mask))
        assert torch.autograd.gradgradcheck(call, (q, k, v, mask))
        plain_call = PF.scaled_dot_product_attention
        assert torch.autograd.gradgradcheck(lambda k, v: plain_call(q.detach(), k, v, enable_gqa=True), (k, v))


def test_compile_and_export():
    (q, k, v), _ = tensors((1, 2, 2, 9, 9, 8, 8, "blhd", ""))
    mask = torch.randn(1, 1, 9, 9, requires_grad=True)

    def call(q, k, v, mask):
        with use("cpu"):
            return PF.scaled_dot_product_attention(q, k, v, mask, is_causal=True).sin().sum()

    eager = torch.autograd.grad(call(q, k, v, mask), mask)[0]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(q, k, v, mask), mask)[0], eager)

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return PF.scaled_dot_product_attention(q, k, v, is_causal=True)

    with use("cpu"):
        program = torch.export.export(Module(), (q, k, v))
        assert any("pyflash.attention_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(q, k, v), Module()(q, k, v))


def test_functorch_takes_torch():
    q, k, v = (torch.randn(3, 2, 4, 8) for _ in range(3))
    with use("cpu"):
        out = torch.func.vmap(lambda q, k, v: PF.scaled_dot_product_attention(q, k, v))(q, k, v)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))


def test_autocast_follows_torch():
    q = torch.randn(1, 2, 5, 8)
    for dtype in HALVES:
        with torch.autocast("cpu", dtype), use("cpu"):
            assert PF.scaled_dot_product_attention(q, q, q, torch.randn(5, 5)).dtype == dtype


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((4, 8), (5, 7), (5, 8), {}), "key has head_dim 7"),
        (((4, 8), (5, 8), (6, 8), {}), "value has 6 keys"),
        (((8,), (5, 8), (5, 8), {}), "at least 2"),
        (((2, 4, 8), (3, 4, 8), (3, 4, 8), {}), "do not broadcast"),
        (
            ((4, 4, 8), (3, 4, 8), (3, 4, 8), {"enable_gqa": True}),
            "must divide the number of heads in query: key has 3 and value 3 heads",
        ),
        (((4, 8), (5, 8), (5, 8), {"dropout_p": 1.5}), "got 1.5 as dropout_p"),
        (((4, 8), (5, 8), (5, 8), {"attn_mask": torch.zeros(4, 4)}), "attn_mask has shape"),
        (
            ((4, 8), (5, 8), (5, 8), {"attn_mask": torch.zeros(4, 5, dtype=torch.int32)}),
            "attn_mask.dtype: int and  query.dtype: float",
        ),
        (((4, 8), (5, 8), (5, 8), {"attn_mask": torch.zeros(4, 5, dtype=torch.float64)}), "attn_mask.dtype: double"),
    ],
    ids=lambda a: a if isinstance(a, str) else "",
)
def test_bad_input(arguments, message):
    *shapes, options = arguments
    inputs = [torch.randn(shape) for shape in shapes]
    with pytest.raises((RuntimeError, IndexError)):
        F.scaled_dot_product_attention(*inputs, **options)
    for backend in ("cpu", "torch", "auto"):
        with use(backend), pytest.raises(RuntimeError, match=message):
            PF.scaled_dot_product_attention(*inputs, **options)


def test_bad_types():
    q = torch.randn(4, 8)
    for other in (q.double(), q.bfloat16()):
        with use("cpu"), pytest.raises(RuntimeError, match=r"query.dtype: float key.dtype: .*convert key"):
            PF.scaled_dot_product_attention(q, other, q)
    four = q[None, None]
    for backend in ("auto", "cpu"):  # torch's fused kernel on a CPU believes both
        with use(backend), pytest.raises(RuntimeError, match="value has 3 keys, expected 4"):
            PF.scaled_dot_product_attention(four, four, four[:, :, :3])
        with use(backend), pytest.raises(RuntimeError, match="attn_mask is on meta, query on cpu"):
            PF.scaled_dot_product_attention(four, four, four, torch.zeros(4, 4, device="meta"))
    with use("cpu"), pytest.raises(ValueError, match="causal_align is 'middle'"):
        PF.attention(q, q, q, causal_align="middle")
    with use("cpu"), pytest.raises(ValueError, match="alibi_slopes has shape"):
        PF.attention(q, q, q, alibi_slopes=torch.zeros(3))
    with use("cpu"), pytest.raises(RuntimeError, match="alibi_slopes is on meta"):
        PF.attention(q, q, q, alibi_slopes=torch.zeros(1, device="meta"))
    with use("cpu"), pytest.raises(ValueError, match="softcap is inf"):
        PF.attention(q, q, q, softcap=float("inf"))


def test_memory_is_linear():
    """At N = 16384, D = 64 forward and backward add less than three times the inputs to the peak."""
    code = """
import resource, torch, pyflash, pyflash.functional as PF
q, k, v = (torch.randn(1, 1, 16384, 64, requires_grad=True) for _ in range(3))
def step(n):
    with pyflash.use_backend("cpu"):
        a, b, c = (t[:, :, :n] for t in (q, k, v))
        out = PF.attention(a, b, c, window_size=(64, 0))  # the memory of all keys, in less time
        torch.autograd.grad(out.sum(), (a, b, c))
step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(16384)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) * 1024
    assert grown < 3 * (3 * 16384 * 64 * 4), f"{grown / 2**20:.1f} MiB"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_stride_and_mask(data):
    batch, kv_heads, group = (data.draw(st.integers(1, 2)) for _ in range(3))
    rows, keys = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 140))
    dim, dim_v = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    layout = data.draw(st.sampled_from(["bhld", "blhd", "last_strided", "holes"]))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    qkv, dout = tensors((batch, kv_heads * group, kv_heads, rows, keys, dim, dim_v, layout, ""))
    mask = None
    if rows * keys and data.draw(st.booleans()):  # torch has no gradient of the mask for an empty result
        full = (batch, kv_heads * group, rows, keys)
        mask = torch.randn([size if data.draw(st.booleans()) else 1 for size in full])
        mask = mask if data.draw(st.booleans()) else mask > -0.5
    is_causal = mask is None and data.draw(st.booleans())
    # with few keys dq is a difference of terms as large as dout v^T times k
    q, k, v = qkv
    terms = [t.abs().max() for t in (dout, v, torch.cat([q.flatten(), k.flatten()])) if t.numel()]
    scales = [math.prod(terms) * math.sqrt(dim_v / dim)]
    compare("cpu", qkv, dout, mask, scales=scales, is_causal=is_causal, enable_gqa=group > 1)


def test_reference_is_torch():
    q, k, v = (torch.randn(2, 4, 9, 8, dtype=torch.float64) for _ in range(3))
    out, _ = reference.attention_fwd(q, k, v, None, None, None, Options(0.0, 0.3, 0.0, -1, 0, 0))
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3))


@pytest.mark.parametrize("kind", ["plain", "causal", "bool mask", "heads to broadcast"])
def test_rules_are_asked_once(kind, monkeypatch):
    """A call that the rules have given to our kernels goes there without `choose`, which would ask them again."""
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    q.requires_grad_()
    options = {"is_causal": True} if kind == "causal" else {}
    if kind == "bool mask":
        options["attn_mask"] = torch.rand(5, 5) > 0.3
    if kind == "heads to broadcast":
        k, v = k[:, :1], v[:, :1]
    with use("cpu"):
        expected = PF.scaled_dot_product_attention(q, k, v, **options)
    monkeypatch.setattr(dense, "choose", lambda *_, **__: pytest.fail("asked again"))
    before = backends.counts["attention", "cpu", ""]
    assert torch.equal(PF.scaled_dot_product_attention(q, k, v, **options), expected)
    assert backends.counts["attention", "cpu", ""] == before + 1


class Attend(torch.nn.Module):
    def forward(self, q, k, v):
        return PF.scaled_dot_product_attention(q, k, v)


def test_what_the_rules_were_not_told_still_counts():
    """They are asked by shapes and the query's type: not by autocast, a trace, or the type and layout of the keys."""
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    q.requires_grad_()
    attend = PF.scaled_dot_product_attention
    assert attend(q, k, v).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="Expected query, key, and value to have the same dtype"):
        attend(q, k.double(), v)
    with pytest.raises(TypeError):
        attend(q, k, v, dropout_p=None)
    traced = torch.jit.trace(attend, (q, k, v))  # and once more without gradients: the same graph
    assert "scaled_dot_product_attention" in str(traced.graph)
    torch.export.export(
        Attend(), (q, k, v), strict=True
    )  # not with sizes that the trace left behind, which are tensors


def small_functions():
    """Calls that `auto` would leave to torch for their size, but for their derivatives."""
    torch.manual_seed(2)
    attend = pyflash.nn.MultiheadAttention(4, 2, batch_first=True).double()
    layer = pyflash.nn.TransformerEncoderLayer(4, 2, 8, 0.0, torch.tanh, batch_first=True).double()
    return {
        "scaled_dot_product_attention": lambda x: PF.scaled_dot_product_attention(x, x.sin(), x.cos()),
        "causal": lambda x: PF.scaled_dot_product_attention(x, x.sin(), x.cos(), is_causal=True),
        "MultiheadAttention": lambda x: attend(x, x, x, need_weights=False)[0],
        "MultiheadAttention with weights": lambda x: attend(x, x, x)[1],
        "TransformerEncoderLayer": layer,
    }


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("name", small_functions())
def test_small_calls_have_every_derivative(name, backend):
    """torch's fused kernel on a CPU has no second derivative and no forward mode."""
    function, x = small_functions()[name], torch.randn(2, 3, 4, dtype=torch.float64)
    with use(backend):
        assert torch.autograd.gradcheck(function, [x.clone().requires_grad_()])
        assert torch.autograd.gradgradcheck(function, [x.clone().requires_grad_()])
        jacobian = torch.autograd.functional.jacobian(lambda x: function(x)[0], x)
        torch.testing.assert_close(torch.func.jacfwd(lambda x: function(x)[0])(x), jacobian)
        torch.testing.assert_close(torch.func.jacrev(lambda x: function(x)[0])(x), jacobian)
        hessian = torch.autograd.functional.hessian(lambda x: function(x).square().sum(), x)
        torch.testing.assert_close(torch.func.hessian(lambda x: function(x).square().sum())(x), hessian)
        batch = torch.stack([x, x + 1])
        torch.testing.assert_close(torch.func.vmap(function)(batch), torch.stack([function(b) for b in batch]))


def test_integers_and_complex_numbers_are_refused_as_in_torch():
    for dtype in (torch.int64, torch.bool, torch.complex64):
        q = torch.ones(2, 4, 8).to(dtype)
        with pytest.raises(RuntimeError) as theirs:
            F.scaled_dot_product_attention(q, q, q)
        for backend in ("auto", "cpu", "torch"):
            with use(backend), pytest.raises(RuntimeError) as ours:
                PF.scaled_dot_product_attention(q, q, q)
            assert ours.type is theirs.type


@pytest.mark.parametrize("window_size", [4, (4,), (1, 2, 3), None])
def test_a_window_is_a_pair(window_size):
    q = torch.randn(1, 2, 4, 8)
    packed, offsets = torch.randn(4, 2, 8), torch.tensor([0, 4], dtype=torch.int32)
    lengths = torch.tensor([4], dtype=torch.int32)
    calls = {
        "attention": lambda: PF.attention(q, q, q, window_size=window_size),
        "attention_varlen": lambda: PF.attention_varlen(
            packed, packed, packed, offsets, offsets, 4, 4, window_size=window_size
        ),
        "attention_decode": lambda: PF.attention_decode(q, q, q, lengths, window_size=window_size),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=rf"pyflash\.{name}: window_size is .*expected a pair \(left, right\)"):
            call()


SEEDS = [
    (torch.tensor([1.0]), "float32"),
    (torch.tensor([1, 2]), r"int64 of \(2,\)"),
    (5, "int"),
    (torch.tensor([1]).int(), "int32"),
]


@pytest.mark.parametrize("seed, what", SEEDS, ids=[words for _, words in SEEDS])
def test_a_seed_is_one_number_of_64_bits(seed, what):
    """A kernel reads 8 bytes where it lies: of anything else they would be others', or nobody's."""
    x, lengths = torch.randn(1, 2, 3, 8), torch.tensor([0, 3], dtype=torch.int32)
    calls = (
        lambda: PF.attention(x, x, x, dropout_p=0.5, seed=seed),
        lambda: PF.attention_weights(x, x, dropout_p=0.5, seed=seed),
        lambda: PF.attention_varlen(*[x[0].transpose(0, 1)] * 3, lengths, lengths, 3, 3, dropout_p=0.5, seed=seed),
    )
    for call in calls:
        with pytest.raises(TypeError, match=f"seed is .*{what}.*, expected an int64 tensor of one element"):
            call()


def test_a_seed_of_another_device_is_refused():
    x = torch.randn(1, 2, 3, 8)
    with pytest.raises(RuntimeError, match="seed is on meta and the other tensors on cpu, expected one device"):
        PF.attention(x, x, x, dropout_p=0.5, seed=torch.empty(1, dtype=torch.int64, device="meta"))
