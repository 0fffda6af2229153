"""Launch parameters are data: every shape has a row, and every tile keeps its accumulators within the registers."""

import json

import pytest
import torch

from pyflash.ops.core import backends

if backends.MISSING["triton"]:
    pytest.skip(backends.MISSING["triton"], allow_module_level=True)

from pyflash.kernels import candidates, launch, linear, tuning
from pyflash.kernels.recurrent import layers as rnn

ARCHES = ["sm80", "sm86", "sm90", "sm100", "interpreter"]


@pytest.mark.parametrize(
    "capability, arch", [((8, 0), "sm80"), ((8, 9), "sm86"), ((9, 0), "sm90"), ((10, 0), "sm100"), ((12, 0), "sm86")]
)
def test_architectures(capability, arch):
    assert tuning.arch_of(capability) == arch


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_head_has_a_tile(arch, dtype):
    for head_dim in range(1, 257):
        width = tuning.feature_block(head_dim)
        assert head_dim <= width and width & (width - 1) == 0
        for has_extras in (False, True):
            fwd = tuning.attention_fwd(arch, dtype, head_dim, has_extras)
            assert fwd["BLOCK_M"] * width <= 224 * 32 * fwd["num_warps"]
            dkdv = tuning.attention_bwd_dkdv(arch, dtype, head_dim, has_extras)
            assert 2 * dkdv["BLOCK_N"] * width <= 224 * 32 * dkdv["num_warps"]
            tuning.attention_bwd_dq(arch, dtype, head_dim, has_extras)
            tuning.attention_weights_fwd(arch, dtype, head_dim, has_extras)
            for name, rows in (("attention_weights_bwd_dq", "BLOCK_M"), ("attention_weights_bwd_dk", "BLOCK_N")):
                config = tuning.TUNABLE[name](arch, dtype, head_dim, has_extras)
                assert config[rows] * width <= 224 * 32 * config["num_warps"]
        tuning.attention_decode(arch, dtype, head_dim, 8)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("keys", [0, 1, 63, 64, 65, 4096, 10**6])
@pytest.mark.parametrize("programs", [1, 7, 5000])
def test_splits_cover_the_keys_once(arch, keys, programs):
    splits, each = tuning.decode_splits(arch, programs, keys, 64)
    assert 1 <= splits <= 128 and each % 64 == 0
    assert splits * each >= keys and (splits - 1) * each < max(keys, 1)


def test_every_product_has_a_tile():
    for arch in ARCHES:
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 32, 33, 64, 65, 10**6):
                assert tuning.matmul(arch, dtype, rows, 512, 512)["BLOCK_M"] >= 16


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_gathered", [False, True])
def test_every_convolution_has_a_tile(arch, dtype, is_gathered):
    for n in (1, 16, 17, 64, 100, 2048):
        for k in (1, 16, 27, 64, 96, 147, 2048):
            config = tuning.conv(arch, dtype, 12544, n, k, is_gathered)
            assert min(config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]) >= 16
            padded = launch.cdiv(k, config["BLOCK_K"]) * config["BLOCK_K"]
            assert arch == "interpreter" or padded <= max(
                16, launch.cdiv(k, 16) * 18
            )  # of a step that is not full little is lost
            config = tuning.conv_weight_grad(arch, dtype, n, k, is_gathered)
            assert min(config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]) >= 16
    for tiles in (1, 9, 10**5):
        for blocks in (0, 1, 7, 10**6):
            splits, each = tuning.sum_splits(arch, tiles, blocks)
            assert splits >= 1 and splits * each >= blocks and (splits - 1) * each < max(blocks, 1)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gates", [1, 3, 4])
def test_a_recurrent_matrix_is_held_where_there_is_room(arch, dtype, gates):
    for hidden in (1, 16, 17, 64, 100, 128, 129, 256, 257, 2048):
        for config in (tuning.rnn_fwd(arch, dtype, gates, hidden), tuning.rnn_bwd(arch, dtype, gates, hidden)):
            width = config["BLOCK_U"]
            assert min(config["BLOCK_M"], width, config["BLOCK_K"]) >= 16
            if config["IS_HELD"]:
                assert width == config["BLOCK_K"] >= hidden
                assert arch == "interpreter" or gates * width * width * dtype.itemsize <= tuning._HELD[arch]
            elif arch != "interpreter":
                assert (width >= hidden) == (hidden <= 128)


def test_rows_share_a_block():
    for cols in (1, 37, 1024, 5000, 8192, 8193, 65536, 1 << 21):
        block = tuning.row_block("sm90", cols)
        assert block["BLOCK_N"] >= min(cols, 4096) and block["BLOCK_M"] >= 1 and block["num_warps"] in (1, 2, 4, 8, 16)
        assert block["BLOCK_M"] * block["BLOCK_N"] <= 16 * 32 * block["num_warps"]  # elements to a thread
        assert block["BLOCK_N"] >= cols or block["BLOCK_M"] == 1


@pytest.mark.parametrize("arch", ARCHES)
def test_programs_over_rows_run_at_once(arch):
    for warps in (1, 2, 4, 8, 16):
        for tiles in (1, 100, 10**6):
            for columns in (1, 8, 1000):
                programs = tuning.row_programs(arch, warps, tiles, columns)
                assert 1 <= programs <= tiles
                assert programs == 1 or programs * columns * warps <= max(20, warps) * tuning.MULTIPROCESSORS[arch]


def test_tf32_only_where_torch_allows_it():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert tuning.input_precision() == "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert tuning.input_precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_recurrent_layers_follow_cudnns_tf32(monkeypatch):
    """cuDNN's setting is not that of matrix products, and its default is TF32; every product of the layer follows it."""
    seen = set()
    monkeypatch.setattr(linear, "_matmul", Recorder(seen))
    monkeypatch.setattr(rnn, "_rnn_fwd", Recorder(seen))
    monkeypatch.setattr(rnn, "_rnn_bwd", Recorder(seen))
    monkeypatch.setattr(tuning, "arch", lambda device: "sm90")  # nothing is launched, with a GPU or without
    before = torch.backends.cudnn.rnn.fp32_precision
    x, h = torch.zeros(3, 2, 4), torch.zeros(1, 2, 5)
    weights = [torch.zeros(5, 4), torch.zeros(5, 5), torch.zeros(5), torch.zeros(5)]
    y, nothing = torch.zeros(3, 2, 5), torch.empty(0)
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cudnn.rnn.fp32_precision = precision
            seen.clear()
            rnn.rnn_fwd(
                x, h, None, weights, None, None, "rnn_tanh", False, False, False, y, h.clone(), None, nothing, nothing
            )
            grads = x.clone(), h.clone(), None, *map(torch.clone, weights)
            rnn.rnn_bwd(
                x, y, None, None, None, h, None, weights, None, None, y, nothing, nothing, "rnn_tanh", False,
                [True, True, False, *[True] * 4], *grads,
            )  # fmt: skip
            assert seen == {precision}
            assert tuning.input_precision() == "ieee"
    finally:
        torch.backends.cudnn.rnn.fp32_precision = before


class Recorder:
    """In a kernel's place: notes the precision of its products."""

    def __init__(self, seen):
        self.seen = seen

    def __getitem__(self, grid):
        return lambda *args, PRECISION, **rest: self.seen.add(PRECISION)


def test_a_measured_row_goes_first(tmp_path, monkeypatch):
    measured = dict(tuning.attention_fwd("sm90", torch.bfloat16, 64), BLOCK_N=32)
    table = {"keys": {"attention_fwd/half/64/plain": {"config": measured}}}
    (tmp_path / "sm90.json").write_text(json.dumps(table))
    monkeypatch.setattr(tuning, "TUNED", tmp_path)
    tuning.tuned.cache_clear()
    try:
        assert tuning.attention_fwd("sm90", torch.bfloat16, 50) == measured  # of the same shape class
        for arch, dtype, has_extras in (("sm80", torch.bfloat16, False), ("sm90", torch.float32, False)):
            assert tuning.attention_fwd(arch, dtype, 64, has_extras) != measured
        assert tuning.attention_fwd("sm90", torch.bfloat16, 64, has_extras=True) != measured
        assert tuning.attention_fwd.rows("sm90", torch.bfloat16, 64)["BLOCK_N"] == 128
    finally:
        tuning.tuned.cache_clear()


@pytest.mark.parametrize("arch", ARCHES[:-1])
def test_measured_tables_hold_what_the_kernels_take(arch):
    recurrent = {"IS_HELD", "BLOCK_M", "BLOCK_U", "BLOCK_K", "num_stages"}
    rows = {"row_block": {"BLOCK_M", "BLOCK_N"}, "matmul": {"BLOCK_M", "BLOCK_N", "BLOCK_K", "num_stages"}}
    rows |= {"rnn_fwd": recurrent, "rnn_bwd": recurrent, "conv": rows["matmul"], "conv_weight_grad": rows["matmul"]}
    for key, row in tuning.tuned(arch).items():
        expected = rows.get(key.split("/")[0], {"BLOCK_M", "BLOCK_N", "num_stages"}) | {"num_warps"}
        assert key.split("/")[0] in tuning.TUNABLE and set(row["config"]) == expected


@pytest.mark.parametrize("name", sorted(tuning.TUNABLE))
def test_candidates_are_tens(name):
    shapes = {
        "row_block": [(64,), (1024,), (16384,), (1 << 20,)],
        "matmul": [(torch.bfloat16, m, 4096, 4096) for m in (1, 64, 4096)],
        "conv": [
            (torch.bfloat16, 1 << 16, n, k, g) for n in (3, 64, 512) for k in (27, 64, 512) for g in (False, True)
        ],
        "conv_weight_grad": [(torch.bfloat16, n, k, g) for n in (3, 64, 512) for k in (27, 512) for g in (False, True)],
    }
    widths = [
        (dtype, gates, hidden)
        for dtype in (torch.bfloat16, torch.float32)
        for gates in (1, 3, 4)
        for hidden in (16, 64, 256, 1024)
    ]
    shapes |= {"rnn_fwd": widths, "rnn_bwd": widths}
    attention = [(dtype, dim) for dtype in (torch.bfloat16, torch.float32) for dim in (64, 128, 256)]
    attention = [(*shape, 8) for shape in attention] if name == "attention_decode" else attention
    for shape in shapes.get(name, attention):
        found = candidates.of(name, *shape)
        assert 3 <= len(found) <= 40
        assert all(set(config) == set(tuning.TUNABLE[name].rows("sm90", *shape)) for config in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_recurrent_row_serves_its_whole_class(dtype):
    """Where one program has all units it must have those of the widest layer; narrower ones find the same rows."""
    for hidden in (1, 16, 17, 33, 65, 128, 129, 512, 1024, 3000):
        key = tuning.rnn_fwd.key(dtype, 4, hidden)
        alike = [other for other in range(1, 3001, 7) if tuning.rnn_fwd.key(dtype, 4, other) == key]
        for config in candidates.of("rnn_fwd", dtype, 4, hidden):
            assert min(config["BLOCK_M"], config["BLOCK_U"], config["BLOCK_K"]) >= 16
            if config["IS_HELD"]:
                assert config["BLOCK_U"] == config["BLOCK_K"] >= max(alike)
            one_launch = {config["BLOCK_U"] >= other for other in alike}
            assert len(one_launch) == 1
