"""An existing optimiser of torch's with our step, and back: a class swap, so groups, states, hooks and references live on."""

from __future__ import annotations

import functools
import weakref

import torch

from pyflash.optim.adam import Adam
from pyflash.optim.adamw import AdamW
from pyflash.optim.rmsprop import RMSprop
from pyflash.optim.sgd import SGD

OURS: dict[type, type] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.RMSprop: RMSprop,
}
TORCHS = {ours: torchs for torchs, ours in OURS.items()}


def replace(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Gives an optimiser of torch's our step: the same object. One of another class, a subclass of torch's among them, stays as
    it is."""
    return _swap(optimizer, OURS)


def restore(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Undoes `replace`, or makes torch's of one of ours: the same object."""
    return _swap(optimizer, TORCHS)


def _swap(optimizer, classes: dict[type, type]):
    if type(optimizer) in classes:
        optimizer.__class__ = classes[type(optimizer)]
        optimizer.__dict__.pop("_checked", None)
        optimizer._patch_step_function()
        if getattr(optimizer.__dict__.get("step"), "_wrapped_by_lr_sched", False):
            optimizer.step = _counted_by_a_scheduler(optimizer)
    return optimizer


def _counted_by_a_scheduler(optimizer):
    """What torch's schedulers put over `step`, which holds the class's of then: of the class that the optimiser is of."""
    reference = weakref.ref(optimizer)

    @functools.wraps(type(optimizer).step)
    def step(*args, **kwargs):
        optimizer = reference()
        optimizer._opt_called = True
        return type(optimizer).step(optimizer, *args, **kwargs)

    step._wrapped_by_lr_sched = True
    return step
