"""The losses of a GAN's discriminator and generator, of logits."""

from __future__ import annotations

import torch

from pyflash.auto.loss import rules
from pyflash.ops.core.backends import Operation, counts
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import Refused, are_usual, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.loss.means import composer, mean_terms

# kind -> what is averaged of real and of fake, and of the fake alone
DISCRIMINATOR = {
    "minimax": ("softplus_negative", "softplus"),
    "non_saturating": ("softplus_negative", "softplus"),
    "hinge": ("hinge_below", "hinge_above"),
    "wasserstein": ("minus_value", "value"),
    "least_squares": ("half_square_to_one", "half_square"),
}
GENERATOR = {
    "minimax": ("minus_softplus", ""),
    "non_saturating": ("softplus_negative", ""),
    "hinge": ("minus_value", ""),
    "wasserstein": ("minus_value", ""),
    "least_squares": ("half_square_to_one", ""),
}

OPERATION_DISCRIMINATOR, OPERATION_GENERATOR = (
    Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": FLOATS},
        rules=rules(name),
        sizes="(elements of all arguments, are gradients needed, is it the mean of the values themselves)",
        second_derivative="in kernels",
    )
    for name in ("gan_discriminator_loss", "gan_generator_loss")
)


def _key_of(x, z):
    return x.shape, x.dtype, z.shape, z.dtype, x.is_cpu, z.is_cpu


class _Kind:
    """One kind of one of the losses: what a call needs that no call changes."""

    def __init__(self, operation: Operation, x_term: str, z_term: str):
        self.operation, self.terms, self.composed = operation, (x_term, z_term), composer(x_term, z_term)
        self.refused = Refused(operation, self.size_of, _key_of if z_term else None)

    def size_of(self, training, x, z=None):
        if not is_plain(x) or not (z is None or (is_plain(z) and z.dtype in FLOATS and z.device == x.device)):
            return None
        return x.numel() + (0 if z is None else z.numel()), training, self.terms[0] == "minus_value"


_KINDS = {
    operation.name: {kind: _Kind(operation, *terms) for kind, terms in table.items()}
    for operation, table in ((OPERATION_DISCRIMINATOR, DISCRIMINATOR), (OPERATION_GENERATOR, GENERATOR))
}
_OF_DISCRIMINATOR, _OF_GENERATOR = _KINDS.values()


def _no_such_kind(operation: Operation, kind) -> ValueError:
    names = ", ".join(repr(name) for name in _KINDS[operation.name])
    return ValueError(f"pyflash.{operation.name}: kind is {kind!r}, expected one of {names}")


def _result_dtype(x, z):
    """That of x + z; under autocast float32, as of torch's losses."""
    dtype = x.dtype if z is None or z.dtype == x.dtype else torch.promote_types(x.dtype, z.dtype)
    if dtype.itemsize > 2:
        return dtype
    device = x.device.type
    return torch.float32 if device != "meta" and torch.is_autocast_enabled(device) else dtype


def _expect_logits(operation, **tensors):
    expect_tensors(operation, **tensors)
    (first, x), *rest = tensors.items()
    for name, t in tensors.items():
        if not t.is_floating_point():
            raise RuntimeError(
                f"pyflash.{operation}: {name} is {t.dtype}, expected floating-point logits; .float() makes them"
            )
    for name, t in rest:
        if t.device != x.device:
            raise RuntimeError(f"pyflash.{operation}: {first} is on {x.device}, {name} on {t.device}; move one of them")


def _torchs(of: _Kind, x, z=None):
    mean = of.composed(x, z)
    if mean.dtype is x.dtype:  # the wider one, if there are two
        return mean
    dtype = _result_dtype(x, z)
    return mean if mean.dtype is dtype else mean.to(dtype)


def _loss(of: _Kind, is_ours: bool, x, z=None, **tensors):
    """What `auto` did not leave to torch. is_ours: it was asked, and gave the call to our kernels."""
    backend: str | None = "auto"
    if is_ours and are_usual(x, z):
        counts[of.operation.name, "cpu", ""] += 1
    else:
        _expect_logits(of.operation.name, **tensors)
        size = of.size_of(torch.is_grad_enabled() and any([t.requires_grad for t in tensors.values()]), x, z)
        reason = "" if size else NOT_PLAIN if z is None or z.dtype in FLOATS else f"fake is {z.dtype}"
        backend = choose(of.operation, x, (z,), size, reason)
    if backend is None:
        return _torchs(of, x, z)
    return mean_terms(x, z, *of.terms, _result_dtype(x, z), backend)


def gan_discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of a discriminator (a critic) of its logits for real samples and for generated ones.

    Args:
        real, fake: logits of any two shapes; float32, float64, bfloat16 or float16. Each is averaged over all elements.
        kind: "minimax" or "non_saturating" (Goodfellow et al. 2014, arXiv:1406.2661): mean softplus(-real) + mean
            softplus(fake); "hinge" (Lim & Ye 2017, arXiv:1705.02894): mean relu(1 - real) + mean relu(1 + fake);
            "wasserstein" (Arjovsky et al. 2017, arXiv:1701.07875): mean fake - mean real; "least_squares" (Mao et al. 2016,
            arXiv:1611.04076): mean (real - 1)^2 / 2 + mean fake^2 / 2.
    Returns:
        One number, of the arguments' type; under autocast float32, as torch's losses. NaN of an empty tensor, as torch's
        mean. Differentiable any number of times.
    Raises:
        ValueError: no such kind.  RuntimeError: no floating-point numbers, or on two devices.
    Numerics: terms in float32 (float64 for float64), their sum in float64, rounded once; softplus has no threshold.
        Deterministic, whatever the number of threads.
    """
    try:
        of = _OF_DISCRIMINATOR[kind]
    except (KeyError, TypeError):
        raise _no_such_kind(OPERATION_DISCRIMINATOR, kind) from None
    is_torchs = of.refused.holds(real, fake)
    return _torchs(of, real, fake) if is_torchs else _loss(of, is_torchs is False, real, fake, real=real, fake=fake)


def gan_generator_loss(fake: torch.Tensor, kind: str) -> torch.Tensor:
    """The loss of a generator, of the discriminator's logits for its samples.

    Args:
        fake: as in `gan_discriminator_loss`.
        kind: "minimax": -mean softplus(fake); "non_saturating": mean softplus(-fake); "hinge" and "wasserstein":
            -mean fake; "least_squares": mean (fake - 1)^2 / 2.
    Returns, Raises, Numerics: as `gan_discriminator_loss`.
    """
    try:
        of = _OF_GENERATOR[kind]
    except (KeyError, TypeError):
        raise _no_such_kind(OPERATION_GENERATOR, kind) from None
    is_torchs = of.refused.holds(fake)
    return _torchs(of, fake) if is_torchs else _loss(of, is_torchs is False, fake, fake=fake)
