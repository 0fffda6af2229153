"""What the tests of language and vision models share: the model and its twin from one seed, and with the same weights."""

from __future__ import annotations

import contextlib
import copy

import torch

import pyflash
from pyflash import nn
from pyflash.nn._twins import ORIGINALS, TWINS
from tests.nn.module_helpers import assert_same


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
    """As after some training: every vector of its parameters does something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.2)
            else:
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
    assert_same([ours.double()], theirs.double(), args, kwargs, backends=backends, modes=modes)


@contextlib.contextmanager
def counting(module):
    """Yields a list that grows by the shape of each input of `module`."""
    seen: list[torch.Size] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    try:
        yield seen
    finally:
        handle.remove()


__all__ = ["assert_same_results", "assert_twins", "counting", "nn", "seeded", "stirred", "trained", "twins"]
