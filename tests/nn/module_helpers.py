"""What the tests of modules share: our module and torch's on the same weights, against torch's in float64."""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager

import torch
from helpers import assert_error_within, use
from torch.utils._pytree import tree_leaves, tree_map


def option_id(options) -> str:
    """Options as a test's name: functions by theirs, because an address differs from one worker to the next."""
    if not isinstance(options, dict):
        return getattr(options, "__name__", str(options))
    return ", ".join(f"{name} {getattr(value, '__name__', value)}" for name, value in options.items()) or "default"


MODES = ("train", "eval", "eval without gradients")
BACKENDS = ("torch", "cpu")


def results(module, args, kwargs, mode, backend=None, constants=()):
    """Outputs, then gradients of inputs and parameters for a fixed random gradient (none without gradients)."""
    module.train(mode == "train")
    with_gradients = mode != "eval without gradients"
    args = [leaf(a, with_gradients and i not in constants) for i, a in enumerate(args)]
    for original, other in same_objects(args):
        args[other] = args[original]
    kwargs = {k: leaf(v, with_gradients) for k, v in kwargs.items()}
    with torch.set_grad_enabled(with_gradients), quiet(), use(backend or "torch"):
        outputs = [o for o in tree_leaves(module(*args, **kwargs)) if o is not None]
        if not with_gradients:
            return tuple(outputs)
        generator = torch.Generator().manual_seed(5)
        douts = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
        unique = {id(a): a for a in (*tree_leaves((args, kwargs)), *module.parameters())}
        wanted = [t for t in unique.values() if isinstance(t, torch.Tensor) and t.requires_grad]
        pairs = [(o, d) for o, d in zip(outputs, douts) if o.requires_grad]
        grads = ()
        if wanted and pairs:
            grads = torch.autograd.grad([o for o, _ in pairs], wanted, [d for _, d in pairs], allow_unused=True)
    return (*(o.detach() for o in outputs), *grads)


class Same(int):
    """As an argument: the same tensor object as argument number n."""


def same_objects(args):
    return [(int(a), i) for i, a in enumerate(args) if isinstance(a, Same)]


def leaf(value, requires_grad):
    if isinstance(value, tuple):
        return tree_map(lambda v: leaf(v, requires_grad), value)
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        # a float mask with -inf gets no gradient: torch's is NaN there
        return value.detach().clone().requires_grad_(requires_grad and bool(value.isfinite().all()))
    return value


def doubled(value):
    if isinstance(value, tuple):
        return tree_map(doubled, value)
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def assert_same(ours, theirs, args, kwargs=None, *, modes=MODES, backends=BACKENDS, floor_ulp=64, constants=()):
    """Our module's outputs and gradients are as near to float64 as torch's, in every mode and on every backend.

    Args:
        ours: a module of ours, or several of them.
        floor_ulp: as in `assert_error_within`; the default is for a chain of ten operations and more.
        constants: numbers of the arguments that have no gradient.
    """
    kwargs = kwargs or {}
    modules = ours if isinstance(ours, (list, tuple)) else [ours]
    state = copy.deepcopy(theirs.state_dict())  # a call may change what is tracked
    double = copy.deepcopy(theirs).double()
    args64, kwargs64 = [doubled(a) for a in args], {k: doubled(v) for k, v in kwargs.items()}
    for mode in modes:
        for module in (theirs, double):
            module.load_state_dict(state)
        truth = results(double, args64, kwargs64, mode, constants=constants)
        torchs = results(theirs, args, kwargs, mode, constants=constants)
        scales = [t.abs().max() for t in truth if t is not None and t.numel() and t.isfinite().all()]
        for module in modules:
            for backend in backends:
                module.load_state_dict(state)
                found = results(module, args, kwargs, mode, backend, constants)
                assert_error_within(found, torchs, truth, *scales, floor_ulp=floor_ulp)


@contextmanager
def quiet():
    """torch's own advice about nested tensors and mask types."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nested tensor.*")
        warnings.filterwarnings("ignore", message=".*nested_tensor.*")
        warnings.filterwarnings("ignore", message="Support for mismatched")
        yield


def pair(ours_class, theirs_class, *args, **kwargs):
    """Both, constructed from the same seed."""
    built = []
    for cls in (ours_class, theirs_class):
        torch.manual_seed(1)
        with quiet():
            built.append(cls(*args, **kwargs))
    return built
