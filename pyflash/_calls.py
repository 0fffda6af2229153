"""Calls of modules that can be made again: recorded in a run of a model, made on copies of its modules, timed and compared."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

PAIRS, FEWEST_PAIRS = 9, 3  # samples of each candidate, taken in turns
OF_FOUR = 3  # of four pairs, those that the faster one wins: less is noise
WARM_UP = 3  # calls: containers explore in the first, learn in the second (nn/_remembered.py)
LEAST_SECONDS, MOST_SECONDS = 1e-3, 2.0  # of a sample; of all of a candidate, where more than the fewest are taken
_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"


# ---- copies and calls


def copied(model: torch.nn.Module) -> torch.nn.Module:
    """Modules of the same classes with the same parameters; their buffers, which a call may change, are their own."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:  # whatever the user's modules hold
        raise ValueError(
            'pyflash.replace: policy="fastest" measures on copies of the model, which cannot be copied'
            f' ({type(error).__name__}: {error}); policy="all" needs none'
        ) from error


@dataclass
class Call:
    """What a module was called with, and how often in one run of the model."""

    args: tuple
    kwargs: dict
    times: int


def recorded(model, names, args, kwargs) -> tuple[dict[str, list[Call]], dict[str, str]]:
    """Of one run of the model: name -> calls that differ in shapes, types or plain values; name -> why it cannot be called again."""
    found: dict[str, dict[Any, Call]] = {name: {} for name in names}

    def watch(name):
        def before(_, args, kwargs):
            signature = signature_of((args, kwargs))
            if isinstance(signature, str):
                obstacles[name] = obstacle(None, (args, kwargs))
            elif signature in found[name]:
                found[name][signature].times += 1
            else:
                args, kwargs = cloned((args, kwargs))
                found[name][signature] = Call(args, kwargs, 1)

        return before

    obstacles = {name: reason for name in names if (reason := obstacle(model.get_submodule(name), ()))}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True)
        for name in names
        if name not in obstacles
    ]
    try:
        with _seed_kept(model), torch.set_grad_enabled(model.training):
            args, kwargs = cloned((args, kwargs))
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: list(calls.values()) for name, calls in found.items()}, obstacles


def obstacle(module, inputs) -> str:
    """Why a module may not be called again and again, with these inputs."""
    if module is not None and any(getattr(part, hooks) for part in module.modules() for hooks in _HOOKS):
        return "not measured: it has hooks, or what is in it"
    signature = signature_of(inputs)
    return f"not measured: it is called with {signature}" if isinstance(signature, str) else ""


def signature_of(value):
    """What decides how a call is served; or the name of what it may not be called with again."""
    leaves, structure = tree_flatten(value)
    for leaf in leaves:
        if type(leaf) not in (Tensor, torch.nn.Parameter) and not isinstance(leaf, _PLAIN):
            return f"a {type(leaf).__name__}"
    return str(structure), tuple(
        (leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    )


def cloned(value):
    """With tensors of their own: a module may write into what it is called with."""
    return tree_map(
        lambda leaf: leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf,
        value,
    )


def alike(module, calls) -> tuple:
    parameters = tuple(signature_of(parameter) for parameter in module.parameters())
    return repr(module), parameters, tuple((signature_of((call.args, call.kwargs)), call.times) for call in calls)


def _devices(module) -> list[torch.device]:
    return sorted({p.device for p in module.parameters() if p.device.type == "cuda"}, key=str)


def _seed_kept(module):
    return torch.random.fork_rng([device.index for device in _devices(module)])


# ---- timing


class Run:
    """A call of `module`, and its backward where it trains; gives results and gradients."""

    def __init__(self, module: torch.nn.Module, call: Call):
        self.module, self.call = module, call
        self.writes = any(getattr(part, "inplace", False) for part in module.modules())
        leaves = tree_leaves((call.args, call.kwargs))
        self.inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.seeds: list[Tensor] | None = None  # gradients of the results, of the first call

    def __call__(self) -> list[Tensor]:
        with torch.set_grad_enabled(self.module.training):
            args, kwargs = self.call.args, self.call.kwargs
            if self.writes:
                args, kwargs = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
            results = [x for x in tree_leaves(self.module(*args, **kwargs)) if isinstance(x, Tensor)]
            ends, wanted = [x for x in results if x.requires_grad], [*self.inputs, *self.parameters]
            if not (self.module.training and ends and wanted):
                return results
            if self.seeds is None:
                self.seeds = [
                    torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape) for x in ends
                ]
            gradients = torch.autograd.grad(ends, wanted, self.seeds, allow_unused=True)
            return [*results, *(gradient for gradient in gradients if gradient is not None)]


def seconds(run: Run, repeats: int) -> float:
    """Of one of so many calls."""
    devices = _devices(run.module)
    _synchronise(devices)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    _synchronise(devices)
    return (time.perf_counter() - start) / repeats


def _synchronise(devices):
    for device in devices:
        torch.cuda.synchronize(device)


def measured(modules: list, calls: list[Call], must_be_equal: bool = True) -> tuple[int | None, str, tuple]:
    """Of torch's module, ours and possibly a mixture: which to take, or None, why, and milliseconds of torch's and of the best
    other."""
    with _seed_kept(modules[0]):
        runs = [[Run(module, call) for call in calls] for module in modules]
        try:
            wrong = _difference(runs) if must_be_equal else ""
            if wrong:
                return None, wrong, ()
            samples = _samples(runs, [call.times for call in calls])
        except Exception as error:  # whatever a candidate raises where the model ran: it is not taken, and said
            return None, f"not measured: {type(error).__name__}: {error}".splitlines()[0], ()
    best = 0
    for other in range(len(samples) - 1, 0, -1):
        if _is_faster(samples[other], samples[best]):
            best = other
    reason = ("torch's is not slower", "", "faster as torch's with what is ours in it")[best]
    return best, reason, tuple(1e3 * statistics.median(samples[at]) for at in (0, best or 1))


def _samples(runs: list[list[Run]], times: list[int]) -> list[list[float]]:
    """Of each candidate: seconds for all its calls in one run of the model, several times, in turns with the others."""
    repeats, spent = [], 0.0
    for candidates in zip(*runs):
        for run in candidates:
            seconds(run, WARM_UP)
        once = max(seconds(run, 1) for run in candidates)
        repeats.append(max(1, round(LEAST_SECONDS / max(once, 1e-7))))
        spent += repeats[-1] * once
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(PAIRS if PAIRS * spent < MOST_SECONDS else FEWEST_PAIRS):
        total = [0.0] * len(runs)
        for candidates, of_model, repeat in zip(zip(*runs), times, repeats):
            for at, run in enumerate(candidates):
                total[at] += of_model * seconds(run, repeat)
        for one, sample in zip(samples, total):
            one.append(sample)
    return samples


def _is_faster(one: list[float], other: list[float]) -> bool:
    """Beyond noise."""
    wins = sum(a < b for a, b in zip(one, other))
    return 4 * wins >= OF_FOUR * len(one) and statistics.median(one) < statistics.median(other)


# ---- are the numbers the same


def _difference(runs: list[list[Run]]) -> str:
    """Between torch's results and gradients and ours, in words; empty within rounding. Where random numbers are drawn, which are
    not torch's, in evaluation."""
    torchs, ours = runs[:2]
    for mine, reference in zip(ours, torchs):
        expected = reference()
        if mine.module.training and _words(reference(), expected):
            reference, mine = _evaluated(reference), _evaluated(mine)
            for buffer, other in zip(mine.module.buffers(), reference.module.buffers()):
                buffer.copy_(other)  # what each has seen in training
            expected = reference()
        wrong = _words(mine(), expected)
        if wrong:
            return wrong
    return ""


def _evaluated(run: Run) -> Run:
    return Run(copied(run.module).eval(), run.call)


def _words(results: list[Tensor], expected: list[Tensor]) -> str:
    if len(results) != len(expected):
        return f"gives {len(results)} tensors where torch's gives {len(expected)}"
    for result, reference in zip(results, expected):
        if result.shape != reference.shape or result.dtype != reference.dtype:
            return (
                f"gives {result.dtype} of {tuple(result.shape)} where torch's gives {reference.dtype} of"
                f" {tuple(reference.shape)}"
            )
        if not reference.dtype.is_floating_point:
            if not torch.equal(result, reference):
                return f"gives other numbers of {reference.dtype}"
            continue
        ours, torchs = result.detach().double(), reference.detach().double()
        same = (ours == torchs) | (ours.isnan() & torchs.isnan())
        largest = torchs.where(torchs.isfinite(), torch.zeros_like(torchs)).abs().amax() if torchs.numel() else 0.0
        allowed = torch.finfo(reference.dtype).eps ** (2 / 3)
        off = ((ours - torchs).abs() / max(float(largest), torch.finfo(reference.dtype).tiny)).where(~same, 0.0)
        if off.numel() and not float(off.max()) <= allowed:
            return f"differs from torch's by {float(off.max()):.1e} of the largest element ({allowed:.1e} is allowed)"
    return ""
