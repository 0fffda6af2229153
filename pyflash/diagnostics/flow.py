"""`gradient_flow`: watches a model's layers by hooks, and takes them off again."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf
from pathlib import Path

import torch
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.rnn import PackedSequence

from pyflash.diagnostics import picture
from pyflash.diagnostics.series import Series
from pyflash.diagnostics.verdicts import Layer, Report, Thresholds, judge

_SILENT = (  # no layers
    _DropoutNd, _Loss, torch.nn.Identity, torch.nn.Flatten, torch.nn.Unflatten, torch.jit.ScriptModule,
)  # fmt: skip
_CHANNELS_FIRST = (torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._NormBase, torch.nn.GroupNorm)

_CONTAINERS = (
    torch.nn.Sequential,
    torch.nn.ModuleList,
    torch.nn.ModuleDict,
    torch.nn.ParameterList,
    torch.nn.ParameterDict,
)

_RANGES = {  # of an activation: where its slope ends
    torch.nn.Sigmoid: (0.0, 1.0),
    torch.nn.Hardsigmoid: (0.0, 1.0),
    torch.nn.Tanh: (-1.0, 1.0),
    torch.nn.Softsign: (-1.0, 1.0),
}


class gradient_flow:
    """Context manager that records, layer by layer, what a model's activations and gradients are like.

        with pyflash.diagnostics.gradient_flow(model) as flow:
            for x, y in batches:
                loss_of(model(x), y).backward()
        print(flow.report())
        flow.plot("flow.png")

    A layer is a module with parameters of its own, or without children; dropout, reshaping and losses are none. Of its output,
    of the loss's gradient there and of the gradients of its parameters it records norms, means and the share of zeros, in one
    pass over each tensor (a kernel on CPU and GPU), and of a recurrent layer the gradient at each time step. It keeps sums, no
    tensors: memory does not grow with what is recorded. The model's results stay what they were. The hooks are gone when
    the block is left, by an exception too; a backward after it is not recorded.

    Any torch model: replaced or not (inside the block modules that would run as one kernel are called one by one), under autocast,
    in DistributedDataParallel (each process sees its own). What is inside of a compiled graph has no hooks: there only the
    gradients of parameters are seen, and judged.

    The verdict of a layer is the first of these that holds:

    - "exploding": an activation or a gradient is infinite or NaN. (GradScaler's first steps overflow on purpose: enter later.)
    - "dead": at least `dead` of its units (features; channels of a convolution) were 0 for every sample at every place,
      or, where the activation behind it is no module, had no gradient.
    - "saturated": at least `saturated` of its outputs are within `margin` of an end of their range, as a share of the range:
      sigmoid, tanh, their hard forms, softsign, the upper end of ReLU6, the states of RNN, LSTM and GRU.
    - "exploding", "vanishing": the norm of the gradient at its output is more than `exploding` times, less than `vanishing` times
      that at the layer nearest to the loss; or, of a recurrent layer, that at the first time step's input is, compared
      with the last step's and the largest.
    - "healthy".

    Args:
        model: a torch.nn.Module.
        vanishing, exploding: factors, 1e-3 and 1e3.
        dead, saturated: shares, 0.7 (of a deep ReLU net with its first weights up to a half is silent) and 0.5.
        margin: 0.02: of a tanh above 0.96, where its slope is below 8% of the largest.
        every: record every so many forwards of the model.
    Raises:
        TypeError: model is no module, a threshold no number.  ValueError: a threshold is out of its range, or no layer is found.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        vanishing: float = 1e-3,
        exploding: float = 1e3,
        dead: float = 0.7,
        saturated: float = 0.5,
        margin: float = 0.02,
        every: int = 1,
    ):
        if not isinstance(model, torch.nn.Module):
            raise TypeError(
                f"pyflash.diagnostics.gradient_flow: expected a torch.nn.Module, got {type(model).__name__}"
            )
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"pyflash.diagnostics.gradient_flow: every is {every!r}, expected an int from 1 on")
        self.model, self.every = model, every
        self.thresholds = Thresholds(vanishing, exploding, dead, saturated, margin)
        self.watches = [_Watch(self, name, module) for name, module in _layers(model)]
        if not self.watches:
            raise ValueError("pyflash.diagnostics.gradient_flow: the model has no layer to watch")
        self.forwards = 0  # of the model, since the block was entered
        self.recorded = 0
        self.is_recording = False
        self.order = 0  # modules called in this forward
        self.unit_dim: tuple[int, int] | None = None  # (dimensions, the one of units) of the last layer with parameters
        self._handles: list = []

    def __enter__(self) -> gradient_flow:
        if self._handles:
            raise RuntimeError("pyflash.diagnostics.gradient_flow: the block was entered already; make another one")
        self.is_recording = True
        try:
            self._handles.append(self.model.register_forward_pre_hook(self._begin))
            for watch in self.watches:
                self._handles += watch.hooks()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.is_recording = False
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for watch in self.watches:
            watch.forget()

    def _begin(self, module, args):
        if not torch.compiler.is_compiling():
            self.is_recording = self.forwards % self.every == 0
            self.forwards += 1
            self.recorded += self.is_recording
            self.order = 0
            for watch in self.watches:
                watch.step = 0

    def report(self) -> Report:
        """What was seen until now; printing it prints a table."""
        rows = [watch.row() for watch in self.watches]
        seen = [row for row in rows if row.activation or row.gradient or row.weights]
        judge(seen, self.thresholds)
        silent = [row.name for row in rows if not (row.activation or row.gradient or row.weights)]
        return Report(seen, self.thresholds, silent, self.recorded)

    def to_json(self) -> str:
        """The report as JSON."""
        return self.report().to_json()

    def plot(self, path: str | Path) -> str:
        """Draws gradients by depth, the layers' shares of silent and saturated outputs and, where there are recurrent layers,
        gradients by time step; says what to print about the picture, which needs matplotlib."""
        return picture.draw(self.report(), Path(path))


def _layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    modules = dict(model.named_modules())
    computed = tuple(f"{name}." for name, module in modules.items() if isinstance(module, ParametrizationList))
    found = []
    for name, module in modules.items():
        if isinstance(module, (*_SILENT, ParametrizationList)) or name.startswith(computed):
            continue
        if _parameters(module) or not (_children(module) or isinstance(module, _CONTAINERS)):
            found.append((name, module))
    # Not what all of the others are in: its output is the model's, a loss perhaps, which nothing is behind.
    names = [name for name, _ in found]
    return [(name, module) for name, module in found if len(found) == 1 or not _is_around(name, names)]


def _is_around(name: str, names: list[str]) -> bool:
    return all(other == name or not name or other.startswith(f"{name}.") for other in names)


def _children(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [child for key, child in module._modules.items() if child is not None and key != "parametrizations"]


def _parameters(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Its own, those that a parametrization computes its weights of too."""
    found = list(module.parameters(recurse=False))
    parametrizations = module._modules.get("parametrizations")
    return found if parametrizations is None else [*found, *parametrizations.parameters()]


def _tensors(output) -> Iterator[torch.Tensor]:
    """The floating-point tensors of what a module returns."""
    if isinstance(output, torch.Tensor):
        if (
            output.is_floating_point()
            and output.layout is torch.strided
            and not output.is_nested
            and not output.is_meta
        ):
            yield output
    elif isinstance(output, PackedSequence):
        yield from _tensors(output.data)
    elif isinstance(output, (tuple, list)):
        for item in output:
            yield from _tensors(item)
    elif isinstance(output, dict):
        yield from _tensors(tuple(output.values()))


def _range(module: torch.nn.Module) -> tuple[float, float]:
    """Between which ends the module's outputs lie, where it is saturated there; infinite: there is none."""
    if isinstance(module, torch.nn.Hardtanh):  # and ReLU6, whose 0 is as ReLU's
        return (-inf if module.min_val == 0 else module.min_val), module.max_val
    if isinstance(module, torch.nn.RNNBase):
        return (-inf, inf) if module.mode == "RNN_RELU" else (-1.0, 1.0)
    if isinstance(module, torch.nn.RNNCellBase):
        return (-inf, inf) if getattr(module, "nonlinearity", "tanh") == "relu" else (-1.0, 1.0)
    return next((ends for cls, ends in _RANGES.items() if isinstance(module, cls)), (-inf, inf))


def _is_unseen() -> bool:
    """Is what runs now recorded by torch for later, where a hook would be part of it?"""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


class _Watch:
    """The hooks of one layer, and what they record."""

    def __init__(self, flow: gradient_flow, name: str, module: torch.nn.Module):
        self.flow, self.name, self.module = flow, name, module
        self.parameters = _parameters(module)
        self.is_recurrent = isinstance(module, torch.nn.RNNBase)
        self.is_cell = isinstance(module, torch.nn.RNNCellBase)
        low, high = _range(module)
        width = 0.0 if high == inf else high - (low if low > -inf else 0.0)
        margin = flow.thresholds.margin * width
        self.ends = {"low": low + margin, "high": high - margin}
        self.activation, self.gradient, self.weights, self.arriving = Series(), Series(), Series(), Series()
        self.backwards = [0] * len(self.parameters)  # that gave each parameter a gradient
        self.order = self.step = 0
        self._pending: list = []  # handles of hooks on tensors

    def hooks(self) -> Iterator:
        yield self.module.register_forward_hook(self._forward)
        if self.is_recurrent:
            yield self.module.register_forward_pre_hook(self._before, with_kwargs=True)
        for number, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                yield parameter.register_hook(partial(self._weight, number))

    def forget(self) -> None:
        for handle in self._pending:
            handle.remove()
        self._pending = []

    def _forward(self, module, args, output):
        if _is_unseen() or not self.flow.is_recording:
            return
        flow = self.flow
        flow.order += 1
        self.order, step = flow.order, self.step
        self.step += 1
        is_first, call = True, _Call(self.gradient, step if self.is_cell else None)
        for tensor in _tensors(output):
            dim = self._unit_dim(tensor) if is_first else None
            if is_first:
                self._activation(tensor, output, dim, step)
            if tensor.requires_grad:
                self._hook(tensor, partial(self._gradient, call, None if self.is_recurrent else dim, step))
            is_first = False

    def _activation(self, tensor, output, dim, step) -> None:
        with torch.inference_mode(False):
            self.activation.begin()
            first = output[0] if isinstance(output, tuple) and not isinstance(output, PackedSequence) else output
            if self.is_cell:
                self.activation.add_step(tensor, step, **self.ends)
            elif isinstance(first, PackedSequence):
                self.activation.add_packed(tensor, first.batch_sizes, **self.ends)
            else:
                self.activation.add(tensor, dim, **self.ends)

    def _gradient(self, call, dim, step, gradient) -> None:
        if not self.flow.is_recording or not any(True for _ in _tensors(gradient)):
            return
        call.begin()
        if self.is_cell:
            self.gradient.add_step(gradient, step)
        else:
            self.gradient.add(gradient, dim)

    def _weight(self, number, gradient) -> None:
        if not self.flow.is_recording or _is_unseen():
            return
        self.backwards[number] += 1
        self.weights.calls = max(self.backwards)
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        if gradient.is_floating_point():
            self.weights.add(gradient)

    def _before(self, module, args, kwargs):
        """Gives a recurrent layer an input of its own, whose gradient at a step is what comes back to it from all later ones."""
        if _is_unseen() or not self.flow.is_recording or not torch.is_grad_enabled():
            return None
        packed = args[0] if args else kwargs.get("input")
        x = packed.data if isinstance(packed, PackedSequence) else packed
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return None
        if not x.requires_grad and not any(parameter.requires_grad for parameter in self.parameters):
            return None
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        if isinstance(packed, PackedSequence):
            given = packed._replace(data=x)
            self._hook(x, partial(self._arriving, _Call(self.arriving), packed.batch_sizes))
        else:
            given = x
            self._hook(x, partial(self._arriving, _Call(self.arriving), self._time_dim(x)))
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "input": given})

    def _arriving(self, call, form, gradient) -> None:
        if not self.flow.is_recording:
            return
        call.begin()
        if isinstance(form, int):
            self.arriving.add(gradient, form)
        else:
            self.arriving.add_packed(gradient, form)

    def _hook(self, tensor, hook) -> None:
        if len(self._pending) > 64:  # of tensors that are gone nothing is left to take off
            self._pending = [handle for handle in self._pending if handle.hooks_dict_ref() is not None]
        self._pending.append(tensor.register_hook(hook))

    def _time_dim(self, x) -> int:
        return 1 if x.dim() == 3 and self.module.batch_first else 0

    def _unit_dim(self, output: torch.Tensor) -> int | None:
        """Which dimension counts the units; of a recurrent layer, the steps. An activation has them where the last layer with
        parameters has them, if its output has as many dimensions."""
        dims = output.dim()
        if dims == 0 or self.is_cell:
            return None
        if self.is_recurrent:
            return self._time_dim(output)
        if self.parameters:
            found = 1 if isinstance(self.module, _CHANNELS_FIRST) and dims > 1 else dims - 1
            self.flow.unit_dim = dims, found
            return found
        known = self.flow.unit_dim
        if known is not None and known[0] == dims:
            return known[1]
        return 1 if dims > 3 else dims - 1

    def row(self) -> Layer:
        layer = Layer(
            self.name,
            type(self.module).__name__,
            self.order,
            self.activation.moments(),
            self.gradient.moments(),
            self.weights.moments(),
        )
        if self.is_recurrent:
            layer.steps = self.arriving.norms()
            layer.dead_units = layer.activation.zeros if layer.activation else layer.dead_units
        elif self.is_cell:
            layer.steps = self.gradient.norms()
            layer.dead_units = layer.activation.zeros if layer.activation else layer.dead_units
        else:
            silent = self.gradient.silent()
            if not self.parameters:  # a layer of zeros is how a residual branch may begin
                silent = max(silent, self.activation.silent(), key=lambda share: (share == share, share))
            layer.dead_units = silent
        return layer


class _Call:
    """One call of a layer: however many of its tensors get a gradient, it counts once."""

    def __init__(self, series: Series, step: int | None = None):
        self.series, self.step, self.is_begun = series, step, False

    def begin(self) -> None:
        if not self.is_begun:
            self.series.begin(self.step)
        self.is_begun = True
