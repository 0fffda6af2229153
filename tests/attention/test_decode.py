"""Attention of a few queries over caches of different lengths, against `attention`'s formula in float64, cache by cache."""

import pytest
import torch
from helpers import assert_error_within, backend_params, on_its_device, run, use

import pyflash.functional as PF
from pyflash.kernels.attention.options import Options
from pyflash.ops.attention import reference
from pyflash.ops.core import backends
from pyflash.ops.core.dtypes import acc_dtype

CPU = backend_params("cpu")
SLOPES = torch.tensor([0.5, 0.1, 0.02, 0.3])

CASES = [  # lengths, max_len, heads, kv_heads, few, E, Ev, layout, options, why it is here
    ((1,), 1, 1, 1, 1, 1, 1, "dense", {}, "smallest"),
    ((300, 7, 0, 120), 300, 4, 4, 1, 16, 16, "dense", {}, "ragged; full and empty caches"),
    ((40, 40, 40), 90, 4, 1, 1, 64, 64, "dense", {}, "equal lengths, one key head"),
    ((20, 20, 33), 40, 4, 2, 3, 17, 24, "dense", {}, "a few queries, causal from the end; E != Ev"),
    ((2, 20), 30, 4, 4, 5, 16, 16, "dense", {}, "fewer keys than queries"),
    ((20, 7), 30, 4, 2, 3, 16, 16, "blhd", {"is_causal": False}, "not causal; heads inside rows"),
    ((60, 9), 64, 4, 2, 2, 16, 16, "holes", {"window_size": (5, -1)}, "left window; caches with holes"),
    ((60, 9), 64, 4, 2, 2, 16, 16, "dense", {"is_causal": False, "window_size": (5, 1)}, "window on both sides"),
    ((60, 9), 64, 4, 2, 2, 16, 16, "last_strided", {"softcap": 2.0, "scale": -0.4}, "softcap; columns not adjacent"),
    ((60, 9), 64, 4, 2, 2, 16, 16, "dense", {"alibi_slopes": SLOPES}, "ALiBi"),
    ((9, 9, 60), 64, 4, 4, 2, 16, 16, "dense", {"alibi_slopes": SLOPES * torch.rand(3, 1)}, "ALiBi of each sequence"),
    ((), 8, 4, 4, 1, 16, 16, "dense", {}, "no batch"),
    ((5, 3), 8, 4, 4, 0, 16, 16, "dense", {}, "no queries"),
    ((0, 0), 0, 4, 4, 2, 16, 16, "dense", {}, "no cache"),
    ((5, 3), 8, 0, 2, 1, 16, 16, "dense", {}, "no query heads"),
]  # fmt: skip


def make_cache(batch, heads, max_len, dim, layout, dtype):
    if layout == "blhd":
        return torch.randn(batch, max_len, heads, dim, dtype=dtype).transpose(1, 2)
    if layout == "holes":
        return torch.randn(batch, heads, max_len + 3, dim + 5, dtype=dtype)[:, :, 3:, :dim]
    if layout == "last_strided":
        return torch.randn(batch, heads, dim, max_len, dtype=dtype).mT
    return torch.randn(batch, heads, max_len, dim, dtype=dtype)


def tensors(case, dtype=torch.float32):
    lengths, max_len, heads, kv_heads, few, dim, dim_v, layout, _, _ = case
    q = make_cache(len(lengths), heads, few, dim, layout, dtype)
    k, v = (make_cache(len(lengths), kv_heads, max_len, d, layout, dtype) for d in (dim, dim_v))
    for b, length in enumerate(lengths):  # what is not in use is not read
        k[b, :, length:], v[b, :, length:] = torch.nan, torch.nan
    return q, k, v


def one_by_one(lengths, is_causal=True, scale=None, window_size=(-1, -1), alibi_slopes=None, softcap=0.0):
    def call(q, k, v):
        outs = [(q.new_empty(0, *q.shape[1:3], v.shape[3]), q.new_empty(0, *q.shape[1:3]).to(acc_dtype(q.dtype)))]
        for b, length in enumerate(lengths):
            slopes = alibi_slopes[b] if alibi_slopes is not None and alibi_slopes.dim() == 2 else alibi_slopes
            outs.append(
                reference.attention_fwd(
                    q[b : b + 1], k[b : b + 1, :, :length], v[b : b + 1, :, :length], None, slopes, None,
                    Options(
                        dropout_p=0.0, scale=q.shape[3] ** -0.5 if scale is None else scale, softcap=softcap,
                        window_left=window_size[0], window_right=0 if is_causal else window_size[1],
                        diagonal=length - q.shape[2],
                    ),
                )
            )  # fmt: skip
        return tuple(torch.cat(parts) for parts in zip(*outs))

    return call


def paged(caches, lengths, block_size, layout, dtype):
    """(pools, table) that hold these caches. The pool has blocks of nobody, all that is not in use is NaN, and what the table
    has behind a cache's blocks names none."""
    max_blocks = -(-caches[0].shape[2] // block_size)
    used = [-(-length // block_size) for length in lengths]
    num_blocks = sum(used) + 2
    blocks = torch.randperm(num_blocks)[: sum(used)].split(used)
    pools = []
    for cache in caches:
        pool = make_cache(num_blocks, cache.shape[1], block_size, cache.shape[3], layout, cache.dtype).fill_(torch.nan)
        for b, own in enumerate(blocks):
            for page, block in enumerate(own):
                rows = cache[b, :, page * block_size : (page + 1) * block_size]
                pool[block, :, : rows.shape[1]] = rows
        pools.append(pool)
    table = torch.tensor([-7, 2**31 - 1]).repeat(len(lengths), max_blocks)[:, :max_blocks].to(dtype)
    for b, own in enumerate(blocks):
        table[b, : len(own)] = own
    return pools, table


def compare(backend, case, dtype=torch.float32, block_size=None, of_table=torch.int32):
    qkv, lengths, options = tensors(case, dtype), case[0], on_its_device(case[8])
    theirs = one_by_one(lengths, **options)

    def ours(q, k, v):
        cache_seqlens, table = torch.tensor(lengths, dtype=torch.int32, device=q.device), None
        if block_size:
            (k, v), table = paged((k.cpu(), v.cpu()), lengths, block_size, case[7], of_table)
            k, v, table = k.to(q.device), v.to(q.device), table.to(q.device)
        return PF.attention_decode(q, k, v, cache_seqlens, return_lse=True, block_table=table, **options)

    scale = torch.cat([x.nan_to_num().flatten() for x in qkv])
    assert_error_within(
        run(ours, qkv, None, dtype, backend), run(theirs, qkv, None, dtype), run(theirs, qkv, None, torch.float64), scale
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", backend_params())
def test_matches_each_cache_alone(backend, case):
    compare(backend, case)


@pytest.mark.parametrize("block_size", [1, 16, 50])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[-1])
@pytest.mark.parametrize("backend", backend_params())
def test_pools_of_blocks(backend, case, block_size):
    compare(backend, case, block_size=block_size, of_table=torch.int64 if block_size == 16 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", CPU)
def test_dtypes(backend, dtype):
    for case in (CASES[1], CASES[3]):
        compare(backend, case, dtype)


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_bfloat16_on_triton(backend):
    compare(backend, CASES[3], torch.bfloat16)


@pytest.mark.parametrize("backend", backend_params("cpu", "torch"))
def test_decoding_token_by_token_is_causal_attention(backend):
    q, k, v = (torch.randn(2, 4, 12, 8) for _ in range(3))
    whole = PF.attention(q, k, v, is_causal=True)
    with use(backend):
        for n in (1, 7, 12):
            out = PF.attention_decode(q[:, :, n - 1 : n], k, v, torch.full((2,), n))
            torch.testing.assert_close(out, whole[:, :, n - 1 : n])
        torch.testing.assert_close(PF.attention_decode(q[:, :, 9:], k, v, torch.full((2,), 12)), whole[:, :, 9:])


def test_equal_lengths_are_one_call_without_copies(monkeypatch):
    from pyflash.ops.attention import _cpu_packed as attention_packed

    calls = []
    monkeypatch.setattr(attention_packed, "attention_fwd", lambda *args: calls.append(args))
    q, k, v = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 20, 8), torch.randn(3, 2, 20, 8)
    with use("cpu"):
        PF.attention_decode(q, k, v, torch.tensor([9, 9, 9]))
    assert len(calls) == 1 and calls[0][1].data_ptr() == k.data_ptr() and calls[0][1].shape == (3, 2, 9, 8)


def test_a_gradient_is_refused():
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    for backend in ("cpu", "torch"):
        with use(backend):
            out = PF.attention_decode(q, k, v, torch.tensor([4]))
        with pytest.raises(NotImplementedError, match=r"pyflash\.attention_decode: it has no gradient; use attention"):
            out.sum().backward()


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_pools_compiled_and_exported(backend):
    q, k, v = tensors(CASES[3])
    lengths = torch.tensor(CASES[3][0])
    (k, v), table = paged((k, v), lengths.tolist(), 16, "dense", torch.int32)

    class Module(torch.nn.Module):
        def forward(self, q, k, v, lengths, table):
            with use(backend):
                return PF.attention_decode(q, k, v, lengths, block_table=table)

    args = q, k, v, lengths, table
    eager = Module()(*args)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*args), eager)
    program = torch.export.export(Module(), args).module()
    torch.testing.assert_close(program(*args), eager)
    with pytest.raises(ValueError, match=r"block_table\[0, 0\] is -1, expected 0 to \d+, a block"):  # where it runs
        program(q, k, v, lengths, torch.full_like(table, -1))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_compile_and_export(backend):
    q, k, v = tensors(CASES[3])
    lengths = torch.tensor(CASES[3][0])

    class Module(torch.nn.Module):
        def forward(self, q, k, v, lengths):
            with use(backend):
                return PF.attention_decode(q, k, v, lengths)

    eager = Module()(q, k, v, lengths)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True, backend="aot_eager")(q, k, v, lengths), eager)
    program = torch.export.export(Module(), (q, k, v, lengths))
    assert any("pyflash.attention_decode" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(q, k, v, lengths), eager)
    with pytest.raises(ValueError, match=r"cache_seqlens\[0\] is 41, expected 0 to 40"):  # checked where it runs
        program.module()(q, k, v, lengths + 21)


def test_auto_takes_ours():
    q, k, v = tensors(CASES[0])
    before = backends.counts["attention_decode", "cpu", ""]
    with use("auto"):
        PF.attention_decode(q, k, v, torch.tensor([1]))
    assert backends.counts["attention_decode", "cpu", ""] == before + 1


def test_torch_func():
    q, k, v = (torch.randn(3, 2, 4, 8) for _ in range(3))
    lengths = torch.tensor([4, 2, 3])
    with use("cpu"):
        out = torch.func.vmap(lambda q: PF.attention_decode(q, k, v, lengths))(torch.stack([q, q]))
        torch.testing.assert_close(out[1], PF.attention_decode(q, k, v, lengths))


BAD = [  # what is changed of the call below, exception, message
    ({"cache_seqlens": torch.tensor([3, 10])}, ValueError, r"cache_seqlens\[1\] is 10, expected 0 to 9"),
    ({"cache_seqlens": torch.tensor([-1, 9])}, ValueError, r"cache_seqlens\[0\] is -1, expected 0 to 9"),
    ({"cache_seqlens": torch.tensor([3.0, 9.0])}, RuntimeError, "cache_seqlens is torch.float32"),
    ({"cache_seqlens": torch.tensor([3, 9, 9])}, ValueError, "cache_seqlens 3 elements, expected q's 2"),
    ({"cache_seqlens": torch.tensor(3)}, ValueError, r"cache_seqlens has shape \(\), expected one dimension"),
    ({"cache_seqlens": torch.tensor([3, 9]).to("meta")}, RuntimeError, "cache_seqlens is on meta"),
    ({"q": torch.ones(2, 4, 1, 8).int()}, RuntimeError, "q is torch.int32"),
    ({"q": torch.randn(4, 1, 8)}, ValueError, "3, 4, 4 dimensions, expected 4"),
    ({"q": torch.randn(2, 3, 1, 8)}, ValueError, "k_cache has 2 heads, expected a divisor of q's 3"),
    ({"k_cache": torch.randn(1, 2, 9, 8)}, ValueError, "k_cache has a batch of 1"),
    ({"k_cache": torch.randn(2, 2, 9, 7)}, ValueError, "k_cache has head_dim 7, expected 8"),
    ({"v_cache": torch.randn(2, 2, 8, 8)}, ValueError, r"v_cache has shape \(2, 2, 8, 8\)"),
    ({"v_cache": torch.randn(2, 2, 9, 8).half()}, RuntimeError, "v_cache is torch.float16"),
    ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
    ({"alibi_slopes": torch.ones(2)}, ValueError, r"alibi_slopes has shape \(2,\)"),
    ({"block_table": torch.tensor([[0], [2]])}, ValueError, r"block_table\[1, 0\] is 2, expected 0 to 1, a block"),
    ({"block_table": torch.tensor([[-1], [0]])}, ValueError, r"block_table\[0, 0\] is -1, expected 0 to 1, a block"),
    ({"block_table": torch.zeros(2, 0).int()}, ValueError, r"cache_seqlens\[0\] is 3, expected 0 to 0"),
    ({"block_table": torch.zeros(2, 1)}, RuntimeError, "block_table is torch.float32"),
    ({"block_table": torch.zeros(2).int()}, ValueError, r"block_table has shape \(2,\), expected two dimensions"),
    ({"block_table": torch.zeros(3, 1).int()}, ValueError, "block_table has 3 rows and cache_seqlens 2 elements"),
    ({"block_table": torch.zeros(2, 1, dtype=torch.int32, device="meta")}, RuntimeError, "block_table is on meta"),
    (
        {"block_table": torch.zeros(1, 1).int().expand(2, 2**30)},
        ValueError,
        r"1073741824 blocks of 9 keys, expected fewer than 2\^31",
    ),
    ({"block_table": [[0], [0]]}, TypeError, "block_table"),
]


@pytest.mark.parametrize("change, error, message", BAD, ids=[m for *_, m in BAD])
def test_bad_input(change, error, message):
    call = {"q": torch.randn(2, 4, 1, 8), "k_cache": torch.randn(2, 2, 9, 8), "v_cache": torch.randn(2, 2, 9, 8),
            "cache_seqlens": torch.tensor([3, 9]), **change}  # fmt: skip
    for backend in ("cpu", "torch", "auto", *(["triton"] if backends.INTERPRETING else [])):
        with use(backend), pytest.raises(error, match=f"pyflash.attention_decode: .*{message}"):
            PF.attention_decode(**call)


def test_a_call_like_one_before_is_still_checked():
    """Of the checks of a usual call those of values remain, and all where something is unusual."""
    q, k, v, lengths = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8), torch.tensor([5, 9])
    with use("cpu"):
        expected = PF.attention_decode(q, k, v, lengths)
        torch.testing.assert_close(PF.attention_decode(q, k, v, lengths), expected)
        torch.testing.assert_close(PF.attention_decode(q, k, v, lengths, scale=0.5), PF.attention(
            q, k, v, torch.arange(9) < lengths.view(2, 1, 1, 1), scale=0.5, enable_gqa=True))  # fmt: skip
        for wrong, error in (
            ((q, k, v, torch.tensor([5, 10])), ValueError), ((q, k, v, torch.tensor([-1, 2])), ValueError),
            ((q, k, v.double(), lengths), RuntimeError), ((q, k, v, lengths.float()), RuntimeError),
            ((q, k, v[:, :, :8], lengths), ValueError), ((q, k, v, lengths[:1]), ValueError), ((q, None, v, lengths), TypeError),
        ):  # fmt: skip
            with pytest.raises(error, match="attention_decode"):
                PF.attention_decode(*wrong)
        with pytest.raises(ValueError, match="softcap"):
            PF.attention_decode(q, k, v, lengths, softcap=-1.0)
        scale = torch.tensor(1.0)
        first = PF.attention_decode(q, k, v, lengths, scale=scale)
        scale.fill_(0.5)  # the same tensor, another number
        assert not torch.equal(PF.attention_decode(q, k, v, lengths, scale=scale), first)
        with torch.autocast("cpu", torch.bfloat16):
            assert PF.attention_decode(q, k, v, lengths).dtype == torch.bfloat16
