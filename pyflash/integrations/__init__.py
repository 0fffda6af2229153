"""Tools that keep a registry of torch.nn's classes, told of ours: each of ours is treated as its twin.

Explicit calls, once a process, after which the tool takes a replaced model as it takes the original. Nothing is imported
before. Tools without such a registry need `pyflash.restore` first: docs/differences.md.
"""

from __future__ import annotations

from importlib import import_module

from pyflash.nn._twins import TWINS


def register_captum() -> None:
    """captum.attr.DeepLift and DeepLiftShap: the rules of their nonlinear modules."""
    _register(import_module("captum.attr._core.deep_lift").SUPPORTED_NON_LINEAR)


def register_thop() -> None:
    """thop.profile: the counts of each class."""
    _register(import_module("thop.profile").register_hooks)


def register_ptflops() -> None:
    """ptflops.get_model_complexity_info(backend="pytorch"): the counts of each class."""
    _register(import_module("ptflops.pytorch_ops").MODULES_MAPPING)


def register_opacus() -> None:
    """opacus: what its ModuleValidator refuses and mends, and the per-sample gradients of each class."""
    validator = import_module("opacus.validators").ModuleValidator
    samplers = import_module("opacus.grad_sample")
    _register(validator.VALIDATORS)
    _register(validator.FIXERS)
    _register(samplers.GradSampleModule.GRAD_SAMPLERS)
    _register(samplers.GradSampleModuleFastGradientClipping.GRAD_SAMPLERS)


def _register(registry: dict) -> None:
    for theirs, ours in TWINS.items():
        if theirs in registry:
            registry.setdefault(ours, registry[theirs])
