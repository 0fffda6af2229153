"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

from pyflash.losses import LOSSES
from pyflash.ops.core.registry import OPS

PAIRS = (
    ("softplus_negative", "softplus"),
    ("hinge_below", "hinge_above"),
    ("minus_value", "value"),
    ("half_square_to_one", "half_square"),
    ("minus_softplus", ""),
)


def mean_terms_fwd():
    for terms in PAIRS:
        yield torch.randn(3, 7), torch.randn(5, 2, 2).mT if terms[1] else None, *terms, torch.float32


def mean_terms_bwd():
    for x, z, *terms, _ in mean_terms_fwd():
        for needs in ((True, z is not None), (False, z is not None), (True, False)):
            yield torch.randn(()), x, z, *terms, *needs


def mean_terms_second():
    for x, z, *terms, _ in mean_terms_fwd():
        ddz = None if z is None else z.sin()
        yield torch.randn(()), x.cos(), ddz, x, z, *terms
        if z is not None:
            yield torch.randn(()), None, ddz, x, z, *terms


def cross_entropy_fwd():
    for shape in ((5, 7), (2, 3, 4)):
        x, weight = torch.randn(shape), torch.rand(shape[1])
        targets = torch.randint(shape[1], (shape[0], *shape[2:]))
        targets[0] = -100
        for options in ((-100, 0.0, "mean"), (2, 0.1, "sum"), (-100, 0.1, "none")):
            yield x, targets, None, weight if options[1] else None, *options, torch.float32
            yield x, None, x.softmax(1), None if options[1] else weight, -100, *options[1:], torch.float32


def cross_entropy_bwd():
    for x, targets, probabilities, weight, *options, dtype in cross_entropy_fwd():
        loss, *kept = OPS["cross_entropy_fwd"](x, targets, probabilities, weight, *options, dtype, "torch")
        for needs in ((True, False), (True, True)) if probabilities is not None else ((True, False),):
            yield torch.randn_like(loss), x, targets, probabilities, weight, *kept, *options, *needs


def linear_cross_entropy_fwd():
    x, weight, class_weight = torch.randn(5, 3), torch.randn(7, 3), torch.rand(7)
    targets = torch.tensor([0, 6, -100, 2, 2])
    for bias, options in (
        (None, (-100, 0.0, "mean")), (torch.randn(7), (2, 0.1, "sum")), (torch.randn(7), (-100, 0.1, "none")),
    ):  # fmt: skip
        for needs in ((False, False, False), (True, True, bias is not None), (False, True, False)):
            yield x, weight, bias, targets, class_weight if options[1] else None, *options, torch.float32, *needs


def linear_cross_entropy_bwd():
    for *tensors, ignore_index, smoothing, reduction, dtype, need_dx, need_dw, need_db in linear_cross_entropy_fwd():
        options, needs = (ignore_index, smoothing, reduction), (need_dx, need_dw, need_db)
        loss, *kept = OPS["linear_cross_entropy_fwd"](*tensors, *options, dtype, False, False, False, "torch")
        yield torch.randn_like(loss), *tensors, *kept[:3], *options, *needs


def elementwise_loss_fwd():
    for loss in LOSSES:
        x, target = torch.rand(4, 3), torch.rand(4, 3)
        for weight, reduction in ((None, "sum"), (torch.rand(3), "none"), (torch.rand(4, 3), "weighted")):
            pos_weight = torch.rand(4, 1) if LOSSES[loss].has_pos_weight else None
            yield x, target, weight, pos_weight, loss, 0.5, reduction, 12.0, torch.float32
    turned = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for reduction in ("sum", "none"):
        yield turned, turned.sqrt(), None, None, "mse", 0.0, reduction, 2.0, torch.float32


def elementwise_loss_bwd():
    for *tensors, loss, parameter, reduction, divisor, dtype in elementwise_loss_fwd():
        y, total = OPS["elementwise_loss_fwd"](*tensors, loss, parameter, reduction, divisor, dtype, "torch")
        for needs in ((True, bool(LOSSES[loss].by_target)), (True, False)):
            yield torch.rand_like(y), *tensors, total, loss, parameter, reduction, *needs


def row_loss_fwd():
    a, b, c, target = *torch.randn(3, 5, 7), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    for reduction, divisor in (("sum", 5.0), ("none", 1.0)):
        options = reduction, divisor, torch.float32
        yield a, b, None, target, "cosine_embedding", 0.1, 0.0, 2, False, *options
        yield torch.cat([a, a], 1)[:, 7:], b, None, target, "cosine_embedding", 0.1, 0.0, 2, False, *options
        for power, is_swapped in ((1, False), (2, True), (2, False)):
            yield a, b, c[:1].expand(5, 7), None, "triplet_margin", 1.0, 1e-6, power, is_swapped, *options


def row_loss_bwd():
    for *tensors, loss, margin, eps, power, is_swapped, reduction, divisor, dtype in row_loss_fwd():
        options = loss, margin, eps, power, is_swapped, reduction, divisor
        y, sums = OPS["row_loss_fwd"](*tensors, *options, dtype, "torch")
        is_triplet = loss == "triplet_margin"
        for needs in ((True, True, is_triplet), (False, True, False)):
            yield torch.rand_like(y), *tensors, sums, *options, *needs


def nll_loss_fwd():
    for x, targets, probabilities, weight, ignore_index, _, reduction, dtype in cross_entropy_fwd():
        if probabilities is None:
            yield x, targets, weight, ignore_index, reduction, dtype


def nll_loss_bwd():
    for x, targets, weight, ignore_index, reduction, dtype in nll_loss_fwd():
        loss, total = OPS["nll_loss_fwd"](x, targets, weight, ignore_index, reduction, dtype, "torch")
        yield torch.rand_like(loss), list(x.shape), targets, weight, total, ignore_index, reduction, dtype


OPERATORS = {
    "cross_entropy_fwd": cross_entropy_fwd,
    "cross_entropy_bwd": cross_entropy_bwd,
    "elementwise_loss_fwd": elementwise_loss_fwd,
    "elementwise_loss_bwd": elementwise_loss_bwd,
    "linear_cross_entropy_fwd": linear_cross_entropy_fwd,
    "linear_cross_entropy_bwd": linear_cross_entropy_bwd,
    "mean_terms_fwd": mean_terms_fwd,
    "mean_terms_bwd": mean_terms_bwd,
    "mean_terms_second": mean_terms_second,
    "nll_loss_fwd": nll_loss_fwd,
    "nll_loss_bwd": nll_loss_bwd,
    "row_loss_fwd": row_loss_fwd,
    "row_loss_bwd": row_loss_bwd,
}
