"""Launch parameters as data, one row per architecture and shape class; chosen by pure functions, testable without a GPU.

Nothing is measured at run time. "interpreter" rows are small so that small shapes cross many tiles. What `make gpu
PART=tune` measured on an architecture is in tuned/<architecture>.json and wins over the rows here; candidates.py holds
what it tries.
"""

import functools
import json
from pathlib import Path

import torch
import triton

from pyflash.kernels.primitives import INTERPRETED

# Programs that run at once; the interpreter's number makes small shapes split.
MULTIPROCESSORS = {"interpreter": 8, "sm80": 108, "sm86": 84, "sm90": 132, "sm100": 148}
_SPLIT_FROM = {"interpreter": 96, "sm80": 512, "sm86": 512, "sm90": 512, "sm100": 512}  # keys

# Elements to a program of a pointwise kernel.
POINTWISE_BLOCK = 65536 if INTERPRETED.value else 1024


def dropout_block(dtype):
    """Elements to a program: four vectors of 16 bytes in each of 128 threads, one for each word of a counter."""
    return POINTWISE_BLOCK if INTERPRETED.value else 128 * 4 * 16 // dtype.itemsize


# Indices that a program of the sort counts: one element of a table of 16 digits for each is in registers.
SORT_BLOCK = 64 if INTERPRETED.value else 512


def resample_block(columns):
    """Rows and columns to a program, two blocks of elements together: rows share what a column's places are."""
    block_c = min(triton.next_power_of_2(columns), POINTWISE_BLOCK)
    return dict(BLOCK_R=max(1, 2 * POINTWISE_BLOCK // block_c), BLOCK_C=block_c)


def filtered_lrelu_block(arch, planes, rows, columns, has_v):
    """Lanes to a program and columns of the result to a lane, of filtered_lrelu in one launch: the more columns, the fewer of
    the middle are computed twice and the more registers are taken, and v takes as many again. A band is so many rows that
    programs suffice for four to a multiprocessor: what is above it is computed once more, so a band has 16 at least."""
    width = 2 if has_v else 4
    block = 512 if INTERPRETED.value else 128
    programs = triton.cdiv(planes * triton.cdiv(columns, width), block)
    bands = max(1, min(4 * MULTIPROCESSORS[arch] // programs, rows // 16))
    return dict(WIDTH=width, BLOCK=block, BAND=triton.cdiv(rows, bands))


def embedding_block(cols):
    """Rows of a table that a program copies, and how much of each: 2048 elements together."""
    block_n = min(triton.next_power_of_2(cols), 64 if INTERPRETED.value else 1024)
    return dict(BLOCK_M=max(1, min(64, 2048 // block_n)), BLOCK_N=block_n)


@functools.cache
def arch(device):
    """The row set for a device: "interpreter", "sm80", "sm86", "sm90" or "sm100"."""
    if INTERPRETED.value:
        return "interpreter"
    return arch_of(torch.cuda.get_device_capability(device))


def arch_of(capability):
    """sm_86, 89 and 12x share little shared memory, about 100 KB; the data-centre parts have 164 KB and more."""
    major, minor = capability
    if major == 9:
        return "sm90"
    if major in (10, 11):
        return "sm100"
    return "sm80" if (major, minor) == (8, 0) or (major, minor) == (8, 7) else "sm86"


TUNED = Path(__file__).parent / "tuned"
TUNABLE = {}  # name -> function of (architecture, *shape) whose rows can be measured
TRIAL = {}  # name -> configuration that every call takes, while the tuner tries it


@functools.cache
def tuned(arch):
    """{"name/shape class": {"config": launch parameters, ...}} as measured on this architecture; empty before that."""
    path = TUNED / f"{arch}.json"
    return json.loads(path.read_text())["keys"] if path.exists() else {}


def tunable(shape_class, fitted=lambda config, *shape, **options: config):
    """Decorates a choice of rows: a measured row of the same shape class goes first.

    Args:
        shape_class: of the arguments after the architecture; what one measured row stands for.
        fitted: what a measured row becomes for one shape of its class.
    """

    def decorate(rows):
        name = rows.__name__

        @functools.wraps(rows)
        def config(arch, *shape, **options):
            if name in TRIAL:
                return TRIAL[name]
            table = tuned(arch)
            found = table and table.get(config.key(*shape, **options))
            return fitted(found["config"], *shape, **options) if found else rows(arch, *shape, **options)

        config.rows = rows
        config.key = lambda *shape, **options: "/".join([name, *map(str, shape_class(*shape, **options))])
        TUNABLE[name] = config
        return config

    return decorate


def _width(dtype):
    """bfloat16 and float16 move the same bytes through the same units."""
    return "half" if dtype.itemsize == 2 else str(dtype).removeprefix("torch.")


def _up_to(size, *limits):
    """The shape class of a size: the first limit that holds it, or "any"."""
    return next((limit for limit in limits if size <= limit), "any")


def input_precision():
    """How float32 products may round: "tf32" only where torch allows it to its own."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def recurrent_precision():
    """As input_precision, of recurrent layers: torch's are cuDNN's, which has a setting of its own, and TF32 as default."""
    return "tf32" if torch.backends.cudnn.rnn.fp32_precision == "tf32" else "ieee"


def convolution_precision():
    """As input_precision, of convolutions: cuDNN's setting of its own, and TF32 as default."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def feature_block(dim):
    """The width of the block that holds a head: a power of two, 16 at least for tl.dot."""
    return max(16, 1 << (dim - 1).bit_length())


def _tile(block_m, block_n, num_warps, num_stages):
    return dict(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=num_warps, num_stages=num_stages)


# Rows of (widest head, tile), ascending. sm86 has the sm80 instructions and 99 KB of shared memory; sm100 keeps its
# accumulators in tensor memory and has registers to spare. Every tile below is in the ahead-of-time table.
_FWD = {
    "sm80": [(64, _tile(128, 64, 4, 3)), (128, _tile(128, 64, 8, 3)), (256, _tile(64, 32, 8, 2))],
    "sm86": [(64, _tile(128, 64, 4, 3)), (128, _tile(128, 64, 8, 2)), (256, _tile(64, 32, 8, 2))],
    "sm90": [(64, _tile(128, 128, 8, 3)), (128, _tile(128, 128, 8, 2)), (256, _tile(64, 64, 8, 2))],
    "sm100": [(64, _tile(128, 128, 8, 3)), (128, _tile(128, 64, 8, 3)), (256, _tile(64, 64, 4, 2))],
}
_DQ = {
    "sm80": [(64, _tile(128, 64, 8, 2)), (128, _tile(64, 64, 8, 2)), (256, _tile(64, 32, 8, 2))],
    "sm86": [(64, _tile(128, 64, 8, 2)), (128, _tile(64, 64, 8, 2)), (256, _tile(32, 32, 4, 1))],
    "sm90": [(64, _tile(128, 64, 8, 3)), (128, _tile(128, 64, 8, 2)), (256, _tile(64, 32, 8, 2))],
    "sm100": [(64, _tile(128, 64, 8, 3)), (128, _tile(128, 64, 8, 2)), (256, _tile(64, 32, 8, 2))],
}
_DKDV = {
    "sm80": [(64, _tile(32, 64, 8, 2)), (128, _tile(64, 64, 8, 2)), (256, _tile(32, 64, 8, 1))],
    "sm86": [(128, _tile(64, 64, 8, 2)), (256, _tile(16, 64, 8, 1))],
    "sm90": [(64, _tile(64, 128, 8, 2)), (128, _tile(32, 128, 8, 2)), (256, _tile(32, 64, 8, 1))],
    "sm100": [(64, _tile(64, 128, 8, 2)), (128, _tile(32, 128, 8, 2)), (256, _tile(32, 64, 8, 1))],
}
# With a mask, dropout, softcap or ALiBi on top.
_FWD_EXTRAS = [(128, _tile(128, 64, 8, 2)), (256, _tile(64, 32, 8, 1))]
_DQ_EXTRAS = [(128, _tile(64, 64, 8, 2)), (256, _tile(32, 32, 8, 1))]
_DKDV_EXTRAS = [(128, _tile(32, 64, 8, 2)), (256, _tile(16, 64, 8, 1))]
# IEEE float32 products run on the FMA units and unroll completely.
_FWD_FLOAT32 = [(64, _tile(32, 32, 8, 1)), (128, _tile(32, 16, 8, 1)), (256, _tile(16, 16, 8, 1))]
_DQ_FLOAT32 = [(64, _tile(32, 32, 8, 1)), (128, _tile(32, 16, 8, 1)), (256, _tile(16, 16, 8, 1))]
_DKDV_FLOAT32 = [(64, _tile(16, 32, 8, 1)), (256, _tile(16, 16, 8, 1))]


def _pick(plain, extras_rows, float32, interpreter, arch, dtype, head_dim, has_extras):
    if arch == "interpreter":
        return interpreter
    rows = float32 if dtype == torch.float32 else extras_rows if has_extras else plain[arch]
    return next(tile for widest, tile in rows if head_dim <= widest)


def _attention_class(dtype, head_dim, has_extras=False):
    return _width(dtype), feature_block(head_dim), "extras" if has_extras else "plain"


@tunable(_attention_class)
def attention_fwd(arch, dtype, head_dim, has_extras=False):
    """head_dim: the wider of the keys' and the values'; has_extras: attention.tile.has_extras."""
    return _pick(_FWD, _FWD_EXTRAS, _FWD_FLOAT32, _tile(32, 16, 4, 1), arch, dtype, head_dim, has_extras)


@tunable(_attention_class)
def attention_bwd_dq(arch, dtype, head_dim, has_extras=False):
    return _pick(_DQ, _DQ_EXTRAS, _DQ_FLOAT32, _tile(32, 16, 4, 1), arch, dtype, head_dim, has_extras)


@tunable(_attention_class)
def attention_bwd_dkdv(arch, dtype, head_dim, has_extras=False):
    return _pick(_DKDV, _DKDV_EXTRAS, _DKDV_FLOAT32, _tile(16, 32, 4, 1), arch, dtype, head_dim, has_extras)


# The weights themselves: no accumulator as wide as a value, but a tile of the matrix to write or, in the backward, to
# read ahead. That takes many small blocks; 64 rows where a warp group works on them together.
_WEIGHTS_FWD = [(64, _tile(128, 64, 8, 3)), (128, _tile(128, 64, 8, 2)), (256, _tile(64, 32, 8, 2))]
_WEIGHTS_FWD_EXTRAS = [(128, _tile(128, 32, 8, 2)), (256, _tile(64, 32, 8, 2))]
_WEIGHTS_DQ_SM80 = [(64, _tile(32, 64, 4, 2)), (128, _tile(64, 32, 4, 2)), (256, _tile(32, 32, 8, 1))]
_WEIGHTS_DQ_SM90 = [(64, _tile(64, 64, 4, 2)), (128, _tile(64, 64, 8, 2)), (256, _tile(32, 32, 8, 1))]
_WEIGHTS_DQ = {
    "sm80": _WEIGHTS_DQ_SM80,
    "sm86": _WEIGHTS_DQ_SM80,
    "sm90": _WEIGHTS_DQ_SM90,
    "sm100": _WEIGHTS_DQ_SM90,
}
_WEIGHTS_DQ_EXTRAS = [(64, _tile(32, 64, 4, 2)), (128, _tile(32, 64, 8, 2)), (256, _tile(32, 32, 8, 1))]
_WEIGHTS_DQ_FLOAT32 = [(64, _tile(32, 32, 8, 1)), (256, _tile(16, 16, 8, 1))]
_WEIGHTS_DK = [(128, _tile(32, 64, 4, 2)), (256, _tile(16, 64, 8, 1))]


@tunable(_attention_class)
def attention_weights_fwd(arch, dtype, head_dim, has_extras=False):
    plain = dict.fromkeys(_FWD, _WEIGHTS_FWD)
    return _pick(plain, _WEIGHTS_FWD_EXTRAS, _FWD_FLOAT32, _tile(32, 16, 4, 1), arch, dtype, head_dim, has_extras)


@tunable(_attention_class)
def attention_weights_bwd_dq(arch, dtype, head_dim, has_extras=False):
    float32 = _WEIGHTS_DQ_FLOAT32
    return _pick(_WEIGHTS_DQ, _WEIGHTS_DQ_EXTRAS, float32, _tile(32, 16, 4, 1), arch, dtype, head_dim, has_extras)


@tunable(_attention_class)
def attention_weights_bwd_dk(arch, dtype, head_dim, has_extras=False):
    plain = dict.fromkeys(_FWD, _WEIGHTS_DK)
    return _pick(plain, _DKDV_EXTRAS, _DKDV_FLOAT32, _tile(16, 32, 4, 1), arch, dtype, head_dim, has_extras)


@tunable(lambda dtype, head_dim, rows: (_width(dtype), feature_block(head_dim), _up_to(rows, 16)))
def attention_decode(arch, dtype, head_dim, rows):
    """Tiles of 16 packed rows, the least a matrix instruction takes: the cache is what is read."""
    if arch == "interpreter":
        return _tile(16, 16, 4, 1)
    block_m = 16 if rows <= 16 or dtype == torch.float32 else 32
    if dtype == torch.float32:
        return _tile(block_m, 32 if head_dim <= 128 else 16, 4, 1)
    return _tile(block_m, 64 if head_dim <= 128 else 32, 4, 3 if head_dim <= 128 else 2)


def decode_splits(arch, programs, keys, block_n):
    """(splits, keys in each): two programs a multiprocessor, if there are keys enough; at most 128 parts to combine."""
    blocks = max(1, triton.cdiv(keys, block_n))
    splits = max(1, min(2 * MULTIPROCESSORS[arch] // max(1, programs), blocks, 128))
    blocks_each = triton.cdiv(blocks, splits)
    return triton.cdiv(blocks, blocks_each), blocks_each * block_n


def attention_splits_keys(arch, q_shape, k_shape):
    """Should a plain forward take the decode kernels: so few rows that whole-row programs leave the device idle?"""
    batch, heads, queries, _ = q_shape
    kv_heads, keys = k_shape[1:3]
    if not heads or queries * (heads // kv_heads) > 64:
        return False
    return 2 * batch * kv_heads <= MULTIPROCESSORS[arch] and keys >= _SPLIT_FROM[arch]


def _product(block_m, block_n, block_k, num_warps, num_stages):
    return dict(BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=num_warps, num_stages=num_stages)


# Rows of (most rows of the result, most elements of it, tile), ascending; None is any number. On Hopper 128 x 256 moves
# 48 KB from L2 for what two tiles of 128 x 128 move 64 KB for, and that is what holds such a product back; it takes
# some hundred tiles to fill the device. Few rows are bound by reading the weight: many programs, much in flight.
_MATMUL_HALF = {
    "sm80": [
        (32, None, _product(32, 64, 64, 4, 4)),
        (64, None, _product(64, 64, 64, 4, 4)),
        (None, None, _product(128, 128, 32, 8, 4)),
    ],
    "sm86": [
        (32, None, _product(32, 64, 64, 4, 3)),
        (64, None, _product(64, 64, 64, 4, 3)),
        (None, None, _product(128, 128, 32, 8, 3)),
    ],
    "sm90": [
        (16, None, _product(16, 32, 128, 4, 5)),
        (32, None, _product(32, 64, 128, 4, 4)),
        (64, None, _product(64, 64, 64, 4, 4)),
        (None, 1 << 20, _product(64, 128, 64, 4, 4)),
        (None, 3 << 20, _product(128, 128, 64, 8, 4)),
        (None, None, _product(128, 256, 64, 8, 4)),
    ],
    "sm100": [
        (32, None, _product(32, 64, 128, 4, 4)),
        (64, None, _product(64, 64, 64, 4, 4)),
        (None, None, _product(128, 128, 64, 8, 4)),
    ],
}
_MATMUL_FLOAT32 = [(32, None, _product(32, 64, 16, 4, 2)), (None, None, _product(64, 64, 16, 4, 2))]


@tunable(lambda dtype, M, N, K: (_width(dtype), _up_to(M, 16, 32, 64, 512), _up_to(M * N, 1 << 20, 3 << 20)))
def matmul(arch, dtype, M, N, K):
    if arch == "interpreter":
        return _product(32, 32, 32, 4, 1)
    rows = _MATMUL_FLOAT32 if dtype == torch.float32 else _MATMUL_HALF[arch]
    return next(tile for most, elements, tile in rows if M <= (most or M) and M * N <= (elements or M * N))


# A tile of scores that a softmax follows: half the accumulators of a plain product's, whose place the exponentials take.
_SCORES_HALF = {
    "sm80": _product(128, 128, 32, 8, 3),
    "sm86": _product(64, 128, 32, 4, 3),
    "sm90": _product(128, 128, 64, 8, 3),
    "sm100": _product(128, 128, 64, 8, 3),
}


def score_block(arch, dtype):
    if arch == "interpreter":
        return _product(32, 32, 32, 4, 1)
    return _product(64, 64, 16, 4, 2) if dtype == torch.float32 else _SCORES_HALF[arch]


def classes_at_once(arch, rows, classes, itemsize):
    """Of how many classes the gradients of scores are in memory together: 32 MB of them, or a sixteenth of all, since dx is
    read and written again for each; whole tiles of products."""
    block, most = (64, 1 << 12) if arch == "interpreter" else (256, 32 << 20)
    width = max(most // (rows * itemsize), triton.cdiv(classes, 16))
    return min(classes, triton.cdiv(max(width, 1), block) * block)


def class_splits(arch, blocks, classes, block_n):
    """(splits, classes in each) of blocks of rows: two programs a multiprocessor, each with four tiles of classes at least."""
    tiles = triton.cdiv(classes, block_n)
    splits = max(1, min(2 * MULTIPROCESSORS[arch] // max(1, blocks), tiles // 4))
    each = triton.cdiv(tiles, splits)
    return triton.cdiv(tiles, each), each * block_n


# Convolutions: rows of (most channels of the result, most elements of it, tile). Rows of the product are places, of which
# there are many, and its columns channels, of which there are few.
_CONV_SM80 = [
    (16, None, _product(128, 16, 64, 4, 3)),
    (32, None, _product(128, 32, 64, 4, 3)),
    (64, None, _product(128, 64, 64, 4, 3)),
    (None, 1 << 20, _product(64, 64, 64, 4, 3)),
    (None, None, _product(128, 128, 32, 8, 4)),
]
_CONV_HALF = {
    "sm80": _CONV_SM80,
    "sm86": [*_CONV_SM80[:-1], (None, None, _product(128, 128, 32, 8, 3))],
    "sm90": [
        (16, None, _product(128, 16, 64, 4, 4)),
        (32, None, _product(128, 32, 64, 4, 4)),
        (64, None, _product(128, 64, 64, 4, 4)),
        (None, 1 << 20, _product(64, 128, 64, 4, 4)),
        (None, None, _product(128, 128, 64, 8, 4)),
    ],
}
_CONV_HALF["sm100"] = _CONV_HALF["sm90"]
# Where neighbours of a sum are not neighbours in memory each element has an address of its own: few to a thread.
_CONV_GATHERED = [
    (16, None, _product(128, 16, 32, 8, 2)),
    (32, None, _product(128, 32, 32, 8, 2)),
    (None, None, _product(64, 64, 32, 8, 2)),
]
_FEW_FLOAT32 = [(16, None, _product(64, 16, 16, 4, 2)), (32, None, _product(64, 32, 16, 4, 2))]
_CONV_FLOAT32 = [*_FEW_FLOAT32, (None, None, _product(64, 64, 16, 4, 2))]
_CONV_FLOAT32_GATHERED = [*_FEW_FLOAT32, (None, None, _product(64, 64, 16, 8, 2))]


def _depth(config, K):
    """The configuration with steps of the sum that end with its channels: 96 are three steps of 32, not two of 64."""
    block_k = config["BLOCK_K"]
    while block_k > 16 and -(-K // block_k) * block_k > -(-K // 16) * 16 * 9 // 8:
        block_k //= 2
    return config | {"BLOCK_K": block_k}


def _conv_class(dtype, M, N, K, is_gathered):
    sizes = _up_to(N, 16, 32, 64, 128), _up_to(M * N, 1 << 20), _up_to(K, 16, 32)
    return _width(dtype), *sizes, "gathered" if is_gathered else "adjacent"


@tunable(_conv_class, lambda config, dtype, M, N, K, is_gathered: _depth(config, K))
def conv(arch, dtype, M, N, K, is_gathered):
    """M places and N channels of a result; K channels, or channels and taps, over which an inner sum goes; is_gathered: are
    they apart in memory?"""
    if (
        arch == "interpreter"
    ):  # a step takes milliseconds, whatever its size: the tests that want many ask for small tiles
        return _product(128, 32, 64, 4, 1)
    if dtype == torch.float32:
        rows = _CONV_FLOAT32_GATHERED if is_gathered else _CONV_FLOAT32
    else:
        rows = _CONV_GATHERED if is_gathered else _CONV_HALF[arch]
    tile = next(tile for most, elements, tile in rows if N <= (most or N) and M * N <= (elements or M * N))
    return _depth(tile, K)


# Rows of (most channels of dy, tile); the sum goes over places.
_WEIGHT_GRAD_HALF = [
    (16, _product(16, 64, 64, 4, 3)),
    (32, _product(32, 64, 64, 4, 3)),
    (64, _product(64, 64, 64, 4, 3)),
    (None, _product(128, 64, 64, 4, 3)),
]
_WEIGHT_GRAD_FLOAT32 = [
    (16, _product(16, 32, 32, 4, 2)),
    (32, _product(32, 32, 32, 4, 2)),
    (None, _product(64, 64, 16, 4, 2)),
]

_WEIGHT_GRAD_GATHERED = [
    (16, _product(16, 64, 32, 4, 2)),
    (32, _product(32, 64, 32, 4, 2)),
    (None, _product(64, 64, 16, 8, 2)),
]


def _weight_grad_class(dtype, N, K, is_gathered):
    return _width(dtype), _up_to(N, 16, 32, 64), _up_to(K, 32, 64), "gathered" if is_gathered else "adjacent"


@tunable(_weight_grad_class)
def conv_weight_grad(arch, dtype, N, K, is_gathered):
    """N channels of dy; K of x, or channels and taps; is_gathered: are those of one of them apart in memory?"""
    if arch == "interpreter":
        return _product(32, 64, 128, 4, 1)
    half = _WEIGHT_GRAD_GATHERED if is_gathered else _WEIGHT_GRAD_HALF
    rows = _WEIGHT_GRAD_FLOAT32 if dtype == torch.float32 else half
    tile = next(tile for most, tile in rows if N <= (most or N))
    return tile | {"BLOCK_N": min(tile["BLOCK_N"], max(16, triton.next_power_of_2(K)))}


def conv_block(arch, channels, results, is_last, share):
    """A tile of channels and results of which a program holds several, as channel_block's, with 1 / share of its elements."""
    if arch == "interpreter":
        block_c = min(triton.next_power_of_2(channels), 32)
        return dict(BLOCK_C=block_c, BLOCK_S=min(triton.next_power_of_2(results), 256), num_warps=4)
    block = channel_block(arch, channels, results, is_last)
    return block | {"BLOCK_S": max(1, block["BLOCK_S"] // share)}


def sum_splits(arch, tiles, blocks):
    """(splits, blocks in each) of a sum whose results are so many tiles: about three programs a multiprocessor, and four
    blocks to a program at least, since each split is written and read again."""
    least = 1 if arch == "interpreter" else 4
    splits = max(1, min(3 * MULTIPROCESSORS[arch] // tiles, blocks // least, 1024))
    each = triton.cdiv(max(blocks, 1), splits)
    return max(1, triton.cdiv(blocks, each)), each


def _recurrent(is_held, block_m, block_u, block_k, num_warps, num_stages):
    config = dict(IS_HELD=is_held, BLOCK_M=block_m, BLOCK_U=block_u, BLOCK_K=block_k)
    return dict(**config, num_warps=num_warps, num_stages=num_stages)


# Bytes of a recurrent matrix that stays in shared memory over all steps, from where its products read it: 128 KB in 1024
# cycles. Registers would do for as much, but the compiler sinks such loads into the loop.
_HELD = {"sm80": 128 * 1024, "sm86": 64 * 1024, "sm90": 128 * 1024, "sm100": 128 * 1024}


def _rnn(arch, dtype, gates, hidden, step_half, step_float32):
    width = feature_block(hidden)
    if arch == "interpreter":  # each way has its odd sizes
        return _recurrent(width <= 16, 16, 16 if width <= 16 else 32, 16, 4, 1)
    if dtype != torch.float32 and gates * width * width * dtype.itemsize <= _HELD[arch]:
        return _recurrent(True, 16, width, width, 4 if width <= 64 else 8, 1)
    if width <= 128:
        return _recurrent(False, 16, width, 16, 8, 2)
    return step_float32 if dtype == torch.float32 else step_half


def _recurrent_class(dtype, gates, hidden):
    """One row serves all widths of a class: where a program has all units, it has them for the widest."""
    return _width(dtype), gates, _up_to(feature_block(hidden), 16, 32, 64, 128, 256, 512, 1024)


@tunable(_recurrent_class)
def rnn_fwd(arch, dtype, gates, hidden):
    """How a recurrent layer is walked: in one launch where BLOCK_U holds all hidden units, with W_hh in shared memory
    if IS_HELD; else a launch a step, with tiles small enough that some hundred units fill the device."""
    return _rnn(arch, dtype, gates, hidden, _recurrent(False, 32, 16, 64, 4, 3), _recurrent(False, 32, 16, 16, 4, 2))


@tunable(_recurrent_class)
def rnn_bwd(arch, dtype, gates, hidden):
    """As rnn_fwd; one product as long as all gates, not one for each."""
    return _rnn(arch, dtype, gates, hidden, _recurrent(False, 32, 16, 128, 4, 3), _recurrent(False, 32, 16, 32, 4, 2))


# The widest row that a program holds whole: 16 elements of it in each of 512 threads.
_WIDEST_ROW = {"interpreter": 4096, "sm80": 8192, "sm86": 8192, "sm90": 8192, "sm100": 8192}


@tunable(lambda cols: (_up_to(cols, *(2**n for n in range(14))),))
def row_block(arch, cols):
    """Whole rows of at most 2048 elements together, and warps so that a thread holds about 16 of them; of a wider row
    than a program holds, the block that it walks in."""
    block_n = triton.next_power_of_2(cols)
    if block_n > _WIDEST_ROW[arch]:
        return dict(BLOCK_M=1, BLOCK_N=_WIDEST_ROW[arch] // 2, num_warps=8)
    block_m = max(1, min(16, 2048 // block_n))
    return dict(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=max(1, min(16, block_m * block_n // 512)))


def channel_block(arch, channels, positions, is_last):
    """A tile of channels and positions: about 2048 elements, long where the memory goes on, in four warps."""
    most = 1024 if arch == "interpreter" else 2048
    long, short = (channels, positions) if is_last else (positions, channels)
    along = min(triton.next_power_of_2(long), 64 if is_last and arch != "interpreter" else most)
    across = min(triton.next_power_of_2(short), max(1, most // along))
    block_c, block_s = (along, across) if is_last else (across, along)
    return dict(BLOCK_C=block_c, BLOCK_S=block_s, num_warps=4)


def row_programs(arch, num_warps, tiles, columns=1):
    """How many programs share the tiles of a loop over rows, each for `columns` blocks of columns: 20 warps to a
    multiprocessor, which is what 96 registers a thread allow, so that all run at once and loads of some hide sums of
    others. The interpreter's number makes few tiles go round."""
    warps = 4 if arch == "interpreter" else 20
    most = MULTIPROCESSORS[arch] * max(1, warps // num_warps) // columns
    return max(1, min(tiles, most))


def channel_tile(arch, channels, inner, count):
    """(BLOCK_C x BLOCK_R elements of channels, how many programs share the `count` elements of a channel): neighbours in
    memory are channels where `inner` is 1, else elements of one."""
    most = 65536 if arch == "interpreter" else 2048
    block_c = min(triton.next_power_of_2(channels), 64) if inner == 1 else 1
    block_r = min(triton.next_power_of_2(count), most // block_c)
    programs = MULTIPROCESSORS[arch] * 4 // triton.cdiv(channels, block_c)
    return dict(BLOCK_C=block_c, BLOCK_R=block_r), max(1, min(triton.cdiv(count, block_r), programs))


# Elements of a tile whose columns are adjacent in memory: 16 in each of 256 threads.
_COLUMNS_TILE = {"interpreter": 1024, "sm80": 4096, "sm86": 4096, "sm90": 4096, "sm100": 4096}


def column_block(arch, n):
    """BLOCK_M adjacent columns with all of their n elements, 32 columns at least, which are whole lines of memory; of
    longer columns the block that they are walked in."""
    tile = _COLUMNS_TILE[arch]
    block_n = min(triton.next_power_of_2(n), tile // 32)
    block_m = min(128, tile // block_n)
    return dict(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=max(1, block_m * block_n // 512))
