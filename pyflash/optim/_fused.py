"""What the optimisers share: a step of torch's that gathers each group's tensors and hands them to one kernel.

A class here is torch's own, with another `step`: constructors, groups, states, their dictionaries, errors, hooks and schedulers
are torch's. What no kernel takes goes to torch's step, parameter by parameter, and is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set
from typing import Any

import torch
from torch import Tensor

from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.optim.clip_grad_norm import clip_factor, norm_of
from pyflash.ops.optim.columns import Checked
from pyflash.ops.optim.update import OPERATIONS, Options, update

_ONE = torch.tensor(1.0, device="cpu")  # torch adds it to step counts: a number would become a tensor once for each

EXTRAS = """

    Beyond torch's arguments, also as keys of a group:
        max_grad_norm: gradients are multiplied as they are read so that those of all groups together are no longer, as by
            clip_grad_norm_; what `grad` holds stays as it was.
        ema_decay: of an averaged copy of each weight, `ema_parameters()`, which every step moves by 1 - ema_decay of the way.
    """


class Fused(torch.optim.Optimizer):
    """Comes before torch's class. `rule` names the kernel's update rule and the operation that is counted."""

    rule: str
    has_steps: bool  # does a state count its steps
    # GradScaler leaves unscaling and the decision to us
    _step_supports_amp_scaling = True

    def __init__(self, params, *args, max_grad_norm: float | None = None, ema_decay: float | None = None, **kwargs):
        if max_grad_norm is not None and not max_grad_norm >= 0.0:
            raise ValueError(f"Invalid max_grad_norm value: {max_grad_norm}")
        if ema_decay is not None and not 0.0 <= ema_decay <= 1.0:
            raise ValueError(f"Invalid ema_decay value: {ema_decay}")
        super().__init__(params, *args, **kwargs)
        extras = {"max_grad_norm": max_grad_norm, "ema_decay": ema_decay}
        self._more_defaults({name: value for name, value in extras.items() if value is not None})

    def _more_defaults(self, extras: dict[str, Any]) -> None:
        self.defaults.update(extras)
        for group in self.param_groups:
            for name, value in extras.items():
                group.setdefault(name, value)

    def __setstate__(self, state):
        super().__setstate__(state)
        # What torch's optimiser has saved says nothing of these.
        self._more_defaults(
            {name: self.defaults[name] for name in ("max_grad_norm", "ema_decay") if name in self.defaults}
        )

    def states(self, group) -> tuple[str, ...]:
        """The states of a parameter that the rule reads and writes."""
        raise NotImplementedError

    def options(self, group, stage) -> Options:
        """What the kernel is told, of parameters at this stage: the number of their steps, with this one; of a rule that does
        not count them, whether this is their first."""
        raise NotImplementedError

    def step(self, closure=None, *, zero_grad: bool = False):
        """Perform a single optimization step.

        Args:
            closure: reevaluates the model and returns the loss.
            zero_grad: fill the gradients with zeros in the same pass.
        """
        run = _step_eagerly if torch.compiler.is_compiling() else _step
        return run(self, closure, zero_grad)

    def ema_parameters(self) -> Iterator[Tensor]:
        """The averaged copy of each parameter, group by group; of one that no step has moved, a copy."""
        for group in self.param_groups:
            for p in group["params"]:
                yield self.state[p]["ema"] if "ema" in self.state.get(p, ()) else p.detach().clone()

    # ---- a step ----

    def _update(self, zero_grad: bool) -> None:
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        gradients = "zeroed" if zero_grad else "kept" if scale is None else "written"
        if found_inf is not None and float(found_inf):
            if zero_grad:
                torch._foreach_zero_(
                    [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
                )
            return
        unscale = 1.0 if scale is None else 1.0 / float(scale)
        factors = self._factors(unscale)
        for group, checked, factor in zip(self.param_groups, self._checks(), factors):
            self._update_group(group, checked, factor, gradients)

    def _checks(self) -> list[Checked]:
        """For each group, and one more for the gradients of all."""
        checks = self.__dict__.setdefault("_checked", [])
        while len(checks) <= len(self.param_groups):
            checks.append(Checked())
        return checks

    def _factors(self, unscale: float) -> list:
        """What multiplies the gradients of each group."""
        limits = [group.get("max_grad_norm") for group in self.param_groups]
        if all(limit is None for limit in limits):
            return [unscale] * len(limits)
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not grads:
            return [unscale] * len(limits)
        norm, _ = norm_of(grads, "euclidean", self._checks()[-1])
        total = float(torch.nn.utils.get_total_norm(grads)) if norm is None else norm.total
        return [unscale if limit is None else clip_factor(total, float(limit), unscale) for limit in limits]

    def _update_group(self, group, checked: Checked, factor, gradients: str) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        if reason := _refusal(group, params[0]):
            choose(OPERATIONS[self.rule], params[0], refused=reason)
            self._by_torch(group, params, factor, gradients)
            return
        names, decay, first = self.states(group), group.get("ema_decay"), set[Tensor]()
        needed = (*names, *(["step"] if self.has_steps else ()), *(["ema"] if decay is not None else ()))
        states = [self.state[p] for p in params]
        if any(state.get(name) is None for name in needed for state in states):
            started = [self._start(p, group, names, first) for p in params]
            odd = [p for p, is_started in zip(params, started) if not is_started]
            if odd:
                choose(OPERATIONS[self.rule], odd[0], refused=NOT_PLAIN)
                self._by_torch(group, odd, factor, gradients)
                params = [p for p, is_started in zip(params, started) if is_started]
                states = [self.state[p] for p in params]
        columns = [params, [p.grad for p in params], *([state[name] for state in states] for name in names)]
        if decay is not None:
            columns.append([state["ema"] for state in states])
        served, refused = checked(columns)
        left = list(refused)
        if refused:
            choose(OPERATIONS[self.rule], params[left[0]], refused=refused[left[0]])
        for lists in served:
            backend = choose(OPERATIONS[self.rule], params[lists.rows[0]])
            if backend is None:
                left += lists.rows
                continue
            written = [column for column in columns if column is not columns[1] or gradients != "kept"]
            torch.autograd.graph.increment_version([column[i] for column in written for i in lists.rows])
            for options, rows in self._stages(group, lists.rows, params, states, first):
                options = options._replace(
                    sign=-1.0 if group["maximize"] else 1.0, ema_decay=decay or 0.0, gradients=gradients
                )
                update(lists.only(rows), names, decay is not None, options, factor, backend)
        if left:
            self._by_torch(group, [params[i] for i in left], factor, gradients, first)

    def _start(self, p: Tensor, group, names, first: set[Tensor]) -> bool:
        """Makes the state of a parameter, as torch's step does at its first; not of one that is no plain tensor."""
        if not is_plain(p):
            return False
        state = self.state[p]
        if self.has_steps and not state:
            dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
            state["step"] = torch.zeros((), dtype=torch.float32 if group.get("fused") else dtype, device="cpu")
            state.update({name: torch.zeros_like(p, memory_format=torch.preserve_format) for name in names})
        elif not self.has_steps and names and state.get(names[0]) is None:
            state[names[0]] = torch.zeros_like(p, memory_format=torch.preserve_format)
            first.add(p)
        if group.get("ema_decay") is not None and "ema" not in state:
            state["ema"] = p.detach().clone(memory_format=torch.preserve_format)
        return True

    def _stages(self, group, rows, params, states, first) -> list[tuple[Options, list[int]]]:
        """Counts the steps of these rows; what the kernel is told, and of which of them: one launch for all that have come as
        far."""
        if self.has_steps:
            steps = [states[i]["step"] for i in rows]
            torch._foreach_add_(steps, _ONE, alpha=1.0)
            stages = list(map(Tensor.item, steps))
        else:
            stages = [bool(first) and params[i] in first for i in rows]
        options = {stage: self.options(group, stage) for stage in set(stages)}
        if len(set(options.values())) == 1:
            return [(options[stages[0]], rows)]
        found = defaultdict(list)
        for row, stage in zip(rows, stages):
            found[options[stage]].append(row)
        return list(found.items())

    def _by_torch(self, group, params, factor, gradients: str, first: Set[Tensor] = frozenset()) -> None:
        """The step of these parameters by torch's class, and what else was asked for in torch operations."""
        for p in first & set(params):
            del self.state[p]["momentum_buffer"]  # the first step makes it
        grads = [p.grad for p in params]
        if isinstance(factor, Tensor) or factor != 1:
            for grad in grads:
                grad.mul_(factor)
        decay = group.get("ema_decay")
        before = [] if decay is None else [p.detach().clone() for p in params]
        groups, scaling = self.param_groups, dict[str, Any]()
        for name in ("grad_scale", "found_inf"):
            if name in self.__dict__:
                scaling[name] = self.__dict__.pop(name)
        self.param_groups = [{**group, "params": params}]
        try:
            step: Any = super().step
            step = step.__func__
            (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)  # hooks are called once
        finally:
            self.param_groups = groups
            self.__dict__.update(scaling)
        for p, start in zip(params, before):
            self.state[p].setdefault("ema", start).lerp_(p, 1 - decay)
        if gradients == "zeroed":
            for grad in grads:
                grad.zero_()


def _step(optimizer: Fused, closure, zero_grad: bool):
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        optimizer._update(zero_grad)
    return loss


# Within a graph that torch.compile makes: the graph ends here, as at torch's own step, and begins again behind it.
_step_eagerly = torch._disable_dynamo(_step)


def _refusal(group, first: Tensor) -> str:
    """Why no parameter of this group is for a kernel of ours; empty when they may be."""
    for name in ("capturable", "differentiable"):
        if group.get(name):
            return f"{name}=True"
    if first.is_cuda and group.get("fused"):
        return "fused=True on a GPU counts its steps there"
    if first.is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return ""
