"""What the tuner tries for each row of tuning.py: name -> (configurations, does this one fit that shape at all).

A few tens each, chosen by hand: what wins on an architecture is in this neighbourhood, and a compilation takes seconds.
"""

from itertools import product

import triton

from pyflash.kernels.tuning import feature_block


def _tiles(rows, cols, num_warps, num_stages):
    names = "BLOCK_M", "BLOCK_N", "num_warps", "num_stages"
    return [dict(zip(names, values, strict=True)) for values in product(rows, cols, num_warps, num_stages)]


def _products(*shapes):
    names = "BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages"
    return [dict(zip(names, shape, strict=True)) for shape in shapes]


def _accumulators_fit(rows, width, config):
    """Float32 accumulators [rows, width] in at most 224 of a thread's 255 registers."""
    return rows * width <= 224 * 32 * config["num_warps"]


def _addresses_fit(rows, cols, config):
    """An address for each element of a tile, 64-bit, at most 32 in a thread."""
    return rows * cols <= 32 * 32 * config["num_warps"]


def _forward_fits(config, dtype, head_dim, has_extras=False):
    return _accumulators_fit(config["BLOCK_M"], feature_block(head_dim), config)


def _dk_fits(config, dtype, head_dim, has_extras=False):
    return _accumulators_fit(config["BLOCK_N"], feature_block(head_dim), config)


def _dkdv_fits(config, dtype, head_dim, has_extras=False):
    return _accumulators_fit(2 * config["BLOCK_N"], feature_block(head_dim), config)


CANDIDATES = {
    "attention_fwd": (_tiles((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)), _forward_fits),
    "attention_bwd_dq": (_tiles((64, 128), (32, 64), (4, 8), (1, 2, 3)), _forward_fits),
    "attention_bwd_dkdv": (_tiles((32, 64), (64, 128), (4, 8), (1, 2, 3)), _dkdv_fits),
    "attention_weights_fwd": (_tiles((64, 128), (32, 64, 128), (4, 8), (2, 3)), _forward_fits),
    "attention_weights_bwd_dq": (_tiles((32, 64, 128), (32, 64), (4, 8), (1, 2, 3)), _forward_fits),
    "attention_weights_bwd_dk": (_tiles((32, 64), (64, 128), (4, 8), (1, 2, 3)), _dk_fits),
    "attention_decode": (
        _tiles((16, 32), (32, 64, 128), (2, 4), (2, 3, 4)),
        lambda config, dtype, head_dim, rows: config["BLOCK_M"] == 16 or rows > 16,
    ),
    "conv": (
        _products(
            (64, 64, 64, 4, 3), (64, 128, 64, 4, 3), (64, 128, 64, 4, 4), (64, 256, 64, 8, 3), (128, 16, 32, 4, 4), (128, 16, 64, 4, 4),
            (128, 32, 32, 4, 4), (128, 32, 64, 4, 4), (128, 64, 32, 4, 4), (128, 64, 64, 4, 3), (128, 64, 64, 4, 4), (128, 64, 64, 8, 4),
            (128, 128, 32, 4, 4), (128, 128, 32, 8, 4), (128, 128, 64, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3),
            (256, 16, 32, 8, 3), (256, 32, 32, 8, 3), (256, 64, 32, 8, 3), (256, 64, 64, 8, 3), (256, 128, 64, 8, 3),
            (64, 16, 32, 4, 2), (64, 32, 32, 4, 2), (64, 64, 32, 4, 2), (64, 64, 32, 8, 2), (128, 16, 32, 8, 2), (128, 32, 32, 8, 2),
            (128, 64, 32, 8, 2), (128, 128, 32, 8, 2),
            (64, 16, 16, 4, 2), (64, 32, 16, 4, 2), (64, 64, 16, 4, 2), (64, 64, 16, 4, 3), (128, 64, 16, 8, 2), (128, 128, 16, 8, 2),
        ),
        lambda config, dtype, M, N, K, is_gathered: (
            config["BLOCK_N"] <= max(16, 2 * triton.next_power_of_2(N)) and config["BLOCK_N"] * 8 >= min(N, 256)
            and config["BLOCK_K"] <= max(16, triton.next_power_of_2(K))
            and _accumulators_fit(config["BLOCK_M"], config["BLOCK_N"], config)
            and not (is_gathered and not _addresses_fit(config["BLOCK_M"], config["BLOCK_K"], config))
        ),
    ),
    "conv_weight_grad": (
        _products(
            (16, 32, 64, 4, 3), (16, 64, 64, 4, 3), (16, 128, 64, 4, 3), (32, 32, 64, 4, 3), (32, 64, 64, 4, 3), (32, 128, 64, 4, 3),
            (64, 32, 64, 4, 3), (64, 64, 64, 4, 3), (64, 64, 64, 4, 4), (64, 64, 128, 4, 2), (64, 128, 64, 4, 3), (64, 128, 64, 8, 3),
            (128, 32, 64, 4, 3), (128, 64, 64, 4, 3), (128, 64, 64, 8, 3), (128, 128, 32, 8, 4), (128, 128, 64, 8, 3), (128, 256, 64, 8, 3),
            (16, 32, 32, 4, 2), (16, 64, 32, 4, 2), (32, 32, 32, 4, 2), (32, 64, 32, 4, 2), (64, 32, 32, 4, 2), (64, 64, 32, 8, 2),
            (64, 64, 16, 4, 2), (128, 64, 16, 8, 2), (128, 128, 16, 8, 2),
        ),
        lambda config, dtype, N, K, is_gathered: (
            config["BLOCK_M"] <= max(16, 2 * triton.next_power_of_2(N))
            and config["BLOCK_N"] <= max(32, 2 * triton.next_power_of_2(K))
            and _accumulators_fit(config["BLOCK_M"], config["BLOCK_N"], config)
            and not (is_gathered and not _addresses_fit(config["BLOCK_N"], config["BLOCK_K"], config))
        ),
    ),
    "matmul": (
        _products(
            (16, 32, 128, 4, 5), (16, 32, 256, 4, 4), (16, 64, 128, 4, 4), (16, 128, 128, 4, 4), (32, 64, 64, 4, 4), (32, 64, 128, 4, 4), (32, 128, 64, 4, 4),
            (64, 64, 64, 4, 3), (64, 64, 64, 4, 4), (64, 128, 64, 4, 3), (64, 128, 64, 4, 4), (64, 256, 64, 8, 3),
            (128, 64, 64, 4, 3), (128, 64, 64, 4, 4), (128, 128, 32, 8, 4), (128, 128, 64, 4, 3), (128, 128, 64, 8, 3),
            (128, 128, 64, 8, 4), (128, 128, 128, 8, 2), (128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3),
            (64, 64, 16, 4, 2), (64, 64, 32, 4, 2), (64, 64, 32, 4, 3), (128, 64, 16, 8, 2), (128, 128, 16, 8, 2),
            (128, 128, 16, 8, 3),
        ),
        lambda config, dtype, M, N, K: (
            config["BLOCK_M"] <= max(32, 2 * triton.next_power_of_2(M))
            and _accumulators_fit(config["BLOCK_M"], config["BLOCK_N"], config)
        ),
    ),
}  # fmt: skip


def recurrent(dtype, gates, hidden):
    """W_hh held, one launch that re-reads it, a launch a step: what the size of the matrix leaves open."""
    width = feature_block(hidden)
    depths = (16, 32) if dtype.itemsize == 4 else (64, 128)
    held = product((True,), (16, 32), (width,), (width,), (4, 8), (1,))
    fused = product((False,), (16,), (width,), (16, 32, 64), (4, 8), (2, 3))
    stepped = product((False,), (16, 32, 64), (16, 32), depths, (4,), (3, 4))
    ways = [*held] if gates * width * width * dtype.itemsize <= 192 * 1024 else []
    ways += [*fused] if width <= 256 else []
    ways += [*stepped] if width >= 64 else []
    names = "IS_HELD", "BLOCK_M", "BLOCK_U", "BLOCK_K", "num_warps", "num_stages"
    configs = [dict(zip(names, way, strict=True)) for way in ways]
    return [config for config in configs if _accumulators_fit(gates * config["BLOCK_M"], config["BLOCK_U"], config)]


def row_blocks(cols):
    """Whole rows: few or many to a program, few or many warps; of rows that are walked in blocks, one."""
    block_n = triton.next_power_of_2(cols)
    if block_n > 8192:
        sizes = product((1,), (2048, 4096, 8192), (4, 8, 16))
    else:
        sizes = product((1, 2, 4, 8, 16), (block_n,), (1, 2, 4, 8, 16))
    return [
        dict(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=num_warps)
        for block_m, block_n, num_warps in sizes
        if 128 <= block_m * block_n // num_warps <= 4096 and block_m * block_n <= 32768
    ]


def of(name, *shape, **options):
    """The configurations to try for one key of tuning.py."""
    if name == "row_block":
        return row_blocks(*shape)
    if name in ("rnn_fwd", "rnn_bwd"):
        return recurrent(*shape)
    configurations, fits = CANDIDATES[name]
    return [config for config in configurations if fits(config, *shape, **options)]
