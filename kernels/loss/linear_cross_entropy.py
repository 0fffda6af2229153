"""Cross entropy of x W^T + b, whose scores are never all in memory, and its gradients.

The forward: a program has some rows and a part of the classes, computes a tile of scores at a time, and keeps of it what
cross_entropy.py keeps; the parts of a row are put together by a second launch. The backward computes the scores of some
adjacent classes and all rows again, a tile a program, and writes their gradients to memory that the next classes reuse:
dW of these classes is one product of them, dx a sum of products. Nothing is added in an order that could change.
Wijmans et al. 2024, arXiv:2411.09009, for the recomputation.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.linear import product, product_tile, summed
from pyflash.kernels.loss.cross_entropy import _finish, _targets
from pyflash.kernels.primitives import cast, exp, lowest, scalar
from pyflash.kernels.strided import strided

PARTS = tl.constexpr(5)  # numbers of a row in each part of the classes: top, sum, mass, moment, the target's score


@triton.jit
def _scores(
    x, weight, bias_ptr, offs_m, offs_n, M, N, K, EVEN_K: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of x weight + bias, in float32; rows and classes past the end repeat the first ones. x: Strided [M, K]; weight:
    [K, N]."""
    s = product_tile(x, weight, offs_m, offs_n, M, N, K, EVEN_K, PART, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    if bias_ptr is not None:
        s += cast(tl.load(bias_ptr + offs_n % N), tl.float32)[None, :]
    return s


@triton.jit
def _shares(class_weight_ptr, offs_n, mask_n, share):
    """q of these classes beside the target's, 0 outside."""
    q = tl.where(mask_n, share, 0.0)
    if class_weight_ptr is not None:
        q *= tl.load(class_weight_ptr + offs_n, mask=mask_n, other=0.0)
    return q


@launch.cached
@triton.jit(do_not_specialize=["ignore_index"])
def _linear_cross_entropy_fwd(
    x, weight, bias_ptr, targets_ptr, class_weight_ptr, parts_ptr, M, N, K, of_each, ignore_index, share: "fp64",  # noqa: F821
    IS_SMOOTH: tl.constexpr, EVEN_K: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """PARTS numbers of BLOCK_M rows, of the classes [split * of_each, (split + 1) * of_each)."""
    blocks = tl.cdiv(M, BLOCK_M)
    split = tl.program_id(0) // blocks
    offs_m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    share = scalar(share, tl.float32)
    target = tl.load(targets_ptr + offs_m, mask=mask_m, other=-1)
    top = tl.full([BLOCK_M], lowest(tl.float32), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)
    score = tl.zeros([BLOCK_M], tl.float32)
    start = split * of_each
    for first in range(start, tl.minimum(N, start + of_each), BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        s = _scores(x, weight, bias_ptr, offs_m, offs_n, M, N, K, EVEN_K, PART, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        score += tl.sum(tl.where(offs_n[None, :] == target[:, None], s, 0.0), 1)
        own = tl.maximum(top, tl.max(tl.where(mask_n[None, :], s, float("-inf")), 1))
        s -= own[:, None]
        total = total * exp(top - own) + tl.sum(tl.where(mask_n[None, :], exp(s), 0.0), 1)
        if IS_SMOOTH:
            q = _shares(class_weight_ptr, offs_n, mask_n, share)
            moment += tl.where(first > start, (top - own) * mass, 0.0)
            moment += tl.sum(tl.where(mask_n[None, :], q[None, :] * s, 0.0), 1)
            mass += tl.sum(q)
        top = own
    parts_ptr += split.to(tl.int64) * PARTS * M + offs_m
    tl.store(parts_ptr, top, mask=mask_m)
    tl.store(parts_ptr + M, total, mask=mask_m)
    tl.store(parts_ptr + 2 * M, mass, mask=mask_m)
    tl.store(parts_ptr + 3 * M, moment, mask=mask_m)
    tl.store(parts_ptr + 4 * M, score, mask=mask_m)


@launch.cached
@triton.jit(do_not_specialize=["ignore_index", "splits"])
def _put_together(
    parts_ptr, targets_ptr, class_weight_ptr, loss_ptr, tops_ptr, logs_ptr, sums_ptr, M, N, splits, ignore_index,
    keep: "fp64",  # noqa: F821
    HAS_WEIGHT: tl.constexpr, IS_NONE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """tops and logs of BLOCK_M rows; their losses, or the sums of those and of what they count for in a mean."""
    pid, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    rows = pid * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = rows < M
    parts_ptr += rows
    top = tl.full([BLOCK_M], lowest(tl.float32), tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(parts_ptr + split * PARTS * M, mask=mask_m, other=0.0))
    total = tl.zeros([BLOCK_M], tl.float32)
    mass = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)
    score = tl.zeros([BLOCK_M], tl.float32)
    for split in range(splits):
        at = parts_ptr + split * PARTS * M
        down = tl.load(at, mask=mask_m, other=0.0) - top
        own_mass = tl.load(at + 2 * M, mask=mask_m, other=0.0)
        total += exp(down) * tl.load(at + M, mask=mask_m, other=0.0)
        moment += tl.load(at + 3 * M, mask=mask_m, other=0.0) + tl.where(own_mass != 0.0, down * own_mass, 0.0)
        mass += own_mass
        score += tl.load(at + 4 * M, mask=mask_m, other=0.0)
    log_sum = tl.log(tl.where(mask_m, total, 1.0))
    tl.store(tops_ptr + rows, top, mask=mask_m)
    tl.store(logs_ptr + rows, log_sum, mask=mask_m)
    _, counts, counted = _targets(targets_ptr, class_weight_ptr, rows, mask_m, ignore_index, N, HAS_WEIGHT, tl.float32)
    loss = log_sum * mass - moment + scalar(keep, tl.float32) * counted * (log_sum - (score - top))
    loss = tl.where(counts, loss, 0.0)
    if IS_NONE:
        tl.store(loss_ptr + rows, cast(loss, loss_ptr.dtype.element_ty), mask=mask_m)
    else:
        tl.store(sums_ptr + pid, tl.sum(loss.to(tl.float64)))
        tl.store(sums_ptr + programs + pid, tl.sum(counted.to(tl.float64)))


@launch.cached
@triton.jit
def _sum_of_shares(mass_ptr, class_weight_ptr, N, share: "fp64", BLOCK: tl.constexpr):  # noqa: F821
    mass = tl.zeros([BLOCK], tl.float32)
    for first in range(0, N, BLOCK):
        offs_n = first + tl.arange(0, BLOCK)
        mass += _shares(class_weight_ptr, offs_n, offs_n < N, scalar(share, tl.float32))
    tl.store(mass_ptr, tl.sum(mass))


@launch.cached
@triton.jit(do_not_specialize=["ignore_index", "start"])
def _score_gradients(
    dloss_ptr, x, weight, bias_ptr, targets_ptr, class_weight_ptr, tops_ptr, logs_ptr, total_ptr, mass_ptr, d_ptr, M, N, K,
    start, width, ignore_index, keep: "fp64", share: "fp64",  # noqa: F821
    HAS_WEIGHT: tl.constexpr, IS_SMOOTH: tl.constexpr, IS_NONE: tl.constexpr, EVEN_K: tl.constexpr, PART: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """d [M, width]: the gradients of the scores of classes [start, start + width), one tile a program."""
    blocks = tl.cdiv(M, BLOCK_M)  # neighbours share the classes, whose weights come from L2
    offs_m = tl.program_id(0) % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(0) // blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_n = start + columns
    mask_m, mask_n = offs_m < M, columns < width
    keep, share = scalar(keep, tl.float32), scalar(share, tl.float32)
    s = _scores(x, weight, bias_ptr, offs_m, offs_n, M, N, K, EVEN_K, PART, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    top = tl.load(tops_ptr + offs_m, mask=mask_m, other=0.0)
    log_sum = tl.load(logs_ptr + offs_m, mask=mask_m, other=0.0)
    target, counts, counted = _targets(
        targets_ptr, class_weight_ptr, offs_m, mask_m, ignore_index, N, HAS_WEIGHT, tl.float32
    )
    if IS_NONE:
        g = cast(tl.load(dloss_ptr + offs_m, mask=mask_m, other=0.0), tl.float32)
    else:
        g = tl.zeros([BLOCK_M], tl.float32) + cast(tl.load(dloss_ptr), tl.float32) / tl.load(total_ptr)
    at_target = keep * counted
    mass = at_target
    if IS_SMOOTH:
        mass += tl.load(mass_ptr)
    d = mass[:, None] * exp((s - top[:, None]) - log_sum[:, None])
    if IS_SMOOTH:
        d -= _shares(class_weight_ptr, offs_n, mask_n, share)[None, :]
    d -= tl.where(offs_n[None, :] == target[:, None], at_target[:, None], 0.0)
    d = tl.where(counts[:, None], g[:, None] * d, 0.0)
    places = offs_m.to(tl.int64)[:, None] * width + columns[None, :]
    tl.store(d_ptr + places, cast(d, d_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_n[None, :])


def _settings(x, smoothing):
    """The tile, and how its products are computed."""
    block = tuning.score_block(tuning.arch(x.device), x.dtype)
    return dict(IS_SMOOTH=smoothing != 0, **summed(x.shape[1], x.dtype, block["BLOCK_K"]), **block)


def linear_cross_entropy_fwd(
    x, weight, bias, targets, class_weight, ignore_index, smoothing, reduction, dtype, need_dx, need_dweight, need_dbias,
    loss, tops, logs, total, dx, dweight, dbias,
):  # fmt: skip
    """Fill loss, tops and logs of each row, and total; and the gradients that are needed of a loss whose gradient is 1."""
    (M, K), N = x.shape, weight.shape[0]
    settings = _settings(x, smoothing)
    blocks = launch.cdiv(M, settings["BLOCK_M"])
    splits, of_each = tuning.class_splits(tuning.arch(x.device), blocks, N, settings["BLOCK_N"])
    parts = torch.empty(splits, PARTS.value, M, dtype=torch.float32, device=x.device)
    _linear_cross_entropy_fwd[(blocks * splits,)](
        strided(x), strided(weight.t()), bias, targets, class_weight, parts, M, N, K, of_each, ignore_index, smoothing / N, **settings,
    )  # fmt: skip
    programs = launch.cdiv(M, 64)
    sums = torch.empty(2 * programs, dtype=torch.float64, device=x.device)
    _put_together[(programs,)](
        parts, targets, class_weight, loss, tops, logs, sums, M, N, splits, ignore_index,
        1 - smoothing, HAS_WEIGHT=class_weight is not None, IS_NONE=reduction == "none", BLOCK_M=64,
    )  # fmt: skip
    if reduction == "none":
        total.fill_(1)
    else:
        _finish[(1,)](loss, total, sums, programs, IS_MEAN=reduction == "mean", BLOCK=1024)
    if need_dx or need_dweight or need_dbias:
        linear_cross_entropy_bwd(
            torch.ones_like(loss), x, weight, bias, targets, class_weight, tops, logs, total, ignore_index, smoothing, reduction,
            need_dx, need_dweight, need_dbias, dx, dweight, dbias,
        )  # fmt: skip


def linear_cross_entropy_bwd(
    dloss, x, weight, bias, targets, class_weight, tops, logs, total, ignore_index, smoothing, reduction, need_dx, need_dweight,
    need_dbias, dx, dweight, dbias,
):  # fmt: skip
    """Fill the gradients that are needed."""
    (M, K), N = x.shape, weight.shape[0]
    settings = _settings(x, smoothing)
    most = tuning.classes_at_once(tuning.arch(x.device), M, N, x.element_size())
    memory = torch.empty(M * most, dtype=x.dtype, device=x.device)
    mass = torch.empty((), dtype=torch.float32, device=x.device)
    if smoothing:
        _sum_of_shares[(1,)](mass, class_weight, N, smoothing / N, BLOCK=1024)
    dx_sum = dx if x.dtype == torch.float32 or most == N else torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for start in range(0, N, most):
        width = min(most, N - start)
        classes = slice(start, start + width)
        d = memory[: M * width].view(M, width)
        grid = (launch.cdiv(M, settings["BLOCK_M"]) * launch.cdiv(width, settings["BLOCK_N"]),)
        _score_gradients[grid](
            dloss, strided(x), strided(weight.t()), bias, targets, class_weight, tops, logs, total,
            mass, d, M, N, K, start, width, ignore_index, 1 - smoothing, smoothing / N, HAS_WEIGHT=class_weight is not None,
            IS_NONE=reduction == "none", **settings,
        )  # fmt: skip
        if need_dx:
            product(d, weight[classes], dx_sum, dx_sum if start else None)
        if need_dweight:
            product(d.t(), x, dweight[classes])
        if need_dbias:
            dbias[classes] = torch.sum(d, 0, dtype=torch.float32)
    if need_dx and dx_sum is not dx:
        dx.copy_(dx_sum)
