"""What the tests of language and vision models share: the model and its twin from one seed, and with the same weights."""

from __future__ import annotations

import contextlib
import copy

import torch
from helpers import DEVICE, assert_error_within, on_device, use
from torch.utils._pytree import tree_leaves

import pyflash
from pyflash import nn
from pyflash.nn._twins import ORIGINALS, TWINS
from tests.nn.module_helpers import assert_same, doubled


def seeded(build, *args, **options):
    torch.manual_seed(7)
    return build(*args, **options)


def twins(build, config):
    """Ours and torch.nn's from one seed."""
    return seeded(build, config), seeded(build, config, nn=torch.nn)


def assert_twins(build, config):
    """A seed gives both the same weights under the same keys; neither has a module of the other's."""
    ours, theirs = twins(build, config)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    for module in ours.modules():
        assert type(module) not in TWINS, f"{type(module)} is torch's"
    assert not any(type(module) in ORIGINALS for module in theirs.modules())


def stirred(model):
    """As after some training: every vector of its parameters does something, and weights that begin tiny are not."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.2)
            elif parameter.square().mean() < 0.05**2:
                parameter.mul_(4)
    return model


def trained(build, config):
    """Ours, built otherwise and loaded, and torch.nn's."""
    ours, theirs = build(config), stirred(seeded(build, config, nn=torch.nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def assert_same_results(
    build, config, args, kwargs=None, *, backends, modes=("train", "eval", "eval without gradients")
):
    """Ours, and the twin after replace, are as near to the twin in float64 as the twin; in float64 they are that near, too."""
    ours, theirs = trained(build, config)
    replaced = pyflash.replace(copy.deepcopy(theirs))
    assert_same([ours, replaced], theirs, args, kwargs, backends=backends, modes=modes)
    args, kwargs = [doubled(a) for a in args], {name: doubled(value) for name, value in (kwargs or {}).items()}
    assert_same([ours.double()], theirs.double(), args, kwargs, backends=backends, modes=modes)


def on_backend(backend, build, config, args, kwargs=None):
    """Outputs and gradients of the parameters on a backend whose tensors may be a GPU's, against the twin in float64."""
    with on_device("cpu"):
        theirs = stirred(seeded(build, config, nn=torch.nn))
        double = copy.deepcopy(theirs).double()
    ours = build(config)  # on the GPU, where there is one
    ours.load_state_dict(theirs.state_dict())
    kwargs, found = kwargs or {}, []
    for model, on, device, dtype in (
        (ours, backend, DEVICE, torch.float32), (theirs, "torch", "cpu", torch.float32), (double, "torch", "cpu", torch.double),
    ):  # fmt: skip

        def moved(t, device=device, dtype=dtype):
            return t.to(device, dtype) if t.is_floating_point() else t.to(device)

        with use(on), on_device("cpu"):
            outputs = tree_leaves(model(*map(moved, args), **{name: moved(t) for name, t in kwargs.items()}))
            outputs = [y for y in outputs if y is not None]
            grads = torch.autograd.grad(
                [y.square().sum() for y in outputs], list(model.parameters()), allow_unused=True
            )
        found.append([t if t is None else t.detach().cpu() for t in (*outputs, *grads)])
    assert_error_within(*found, *(t.abs().max() for t in found[2] if t is not None), floor_ulp=64)


@contextlib.contextmanager
def counting(module):
    """Yields a list that grows by the shape of each input of `module`."""
    seen: list[torch.Size] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    try:
        yield seen
    finally:
        handle.remove()


__all__ = [
    "assert_same_results",
    "assert_twins",
    "counting",
    "nn",
    "on_backend",
    "seeded",
    "stirred",
    "trained",
    "twins",
]
