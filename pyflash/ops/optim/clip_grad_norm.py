"""The norm of the gradients of many parameters as of one vector, and gradients that are no longer than a limit.

torch takes a norm of each tensor, one of these norms, and multiplies every gradient; here a pass adds up the squares of all
tensors, and one multiplies. An optimiser of ours leaves out the second: its step multiplies as it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor

from pyflash.ops.core.backends import Operation
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.registry import implementation
from pyflash.ops.optim.columns import Checked, Lists

_CLIP = Operation(
    "clip_grad_norm_", {"cpu": FLOATS, "triton": FLOATS}, second_derivative="none, nor a first one",
    notes=dict.fromkeys(("cpu", "triton"), "norms of type 2 and infinity, of dense gradients on one device"),
)  # fmt: skip
_KINDS = {2.0: "euclidean", inf: "maximum"}
_NORMS = {"cpu": "pyflash.ops.optim._cpu:total_norm", "triton": "pyflash.kernels.optim.norm:total_norm"}
_SCALES = {"cpu": "pyflash.ops.optim._cpu:scale", "triton": "pyflash.kernels.optim.norm:scale"}
ADDED = 1e-6  # to the norm, as torch does


def clip_factor(total, max_norm: float, factor: float = 1.0):
    """What multiplies gradients of the norm `total`, which `factor` would multiply otherwise, so that they are no longer than
    max_norm. A tensor of one is one."""
    wanted = max_norm / (total * abs(factor) + ADDED)
    if isinstance(wanted, Tensor):
        return factor * wanted.clamp(max=1.0)
    return factor if wanted >= 1 else factor * wanted  # NaN stays


class Norm:
    """The norm of gradients: a number where they are on the CPU, else a tensor of float64 there, which nobody waits for."""

    def __init__(self, every_lists: list[Lists], kind: str, backend: str):
        self.backend, self.device = backend, every_lists[0].device.type
        self.total = implementation("clip_grad_norm_", _NORMS, backend, self.device)(every_lists, kind)

    def scale(self, lists: Lists, factor) -> None:
        implementation("clip_grad_norm_", _SCALES, self.backend, self.device)(lists, factor)


def norm_of(grads: list[Tensor], kind: str, checked: Checked) -> tuple[Norm | None, list[Lists]]:
    """The norm by a kernel, or None: torch's function is called."""
    served, refused = checked([grads])
    reason = next(iter(refused.values()), "")
    if len({lists.device for lists in served}) > 1:
        reason = "gradients are on several devices"
    backend = choose(_CLIP, grads[0], refused=reason)
    return (Norm(served, kind, backend) if backend is not None else None), served


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """The norm of all gradients together, which are scaled in place to be no longer than max_norm, as
    torch.nn.utils.clip_grad_norm_.

    Numerics: squares are added up in float64, on a CPU in the same order whatever the number of threads.
    """
    torchs = torch.nn.utils.clip_grad_norm_
    if torch.compiler.is_compiling():
        return torchs(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    parameters = parameters if isinstance(parameters, Tensor) else [*parameters] or parameters
    listed = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = [grad for p in listed if (grad := p.grad) is not None]
    kind = _KINDS.get(float(norm_type))
    # torch has no largest of nothing, and says so
    if not grads or (kind == "maximum" and not all(map(Tensor.numel, grads))):
        return torchs(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    with torch.no_grad():
        norm = None
        if kind is None:
            choose(_CLIP, grads[0], refused=f"norm_type is {norm_type}")
        else:
            norm, served = norm_of(grads, kind, Checked())
        if norm is None:
            return torchs(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
        first = grads[0]
        found = norm.total if isinstance(norm.total, Tensor) else torch.tensor(norm.total, dtype=torch.float64)
        dtypes = {lists.dtype for lists in served}
        found = found.to(first.device, first.dtype if len(dtypes) == 1 else _promoted(dtypes))
        if error_if_nonfinite and not bool(found.isfinite()):
            raise RuntimeError(
                f"The total norm of order {float(norm_type)} for gradients from `parameters` is non-finite, so it cannot be"
                " clipped. To disable this error and scale the gradients by the non-finite norm anyway, set"
                " `error_if_nonfinite=False`"
            )
        factor = clip_factor(norm.total, float(max_norm))
        torch.autograd.graph.increment_version(grads)
        for lists in served:
            norm.scale(lists, factor)
        return found


def _promoted(dtypes) -> torch.dtype:
    """What torch.stack gives of norms of these types."""
    found, *others = dtypes
    for dtype in others:
        found = torch.promote_types(found, dtype)
    return found
