"""`Op`: one operator of the library, its schema, its output shapes and its implementations.

An implementation receives the schema's arguments without the last (the backend) and then the outputs, which are
allocated here once for all backends; it fills them. The reference computes the same with torch operations.
An operator that returns `Tensor[]` gives its implementation each of them as an argument of its own.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyflash.ops.core import backends, checks
from pyflash.ops.core.autograd import vjp
from pyflash.ops.core.checks import PLAIN_TYPES

LIBRARY = torch.library.Library("pyflash", "DEF")
OPS: dict[str, Op] = {}

GUARD = 64  # elements behind each output in paranoid mode
GUARD_VALUE = 77

# Of an output: glibc asks the system for so large an allocation every time, and its pages of 4 KB come one by one as
# they are written to: for 48 MB that takes 12 ms, where the writing takes 3.
LARGE_BYTES = 32 << 20


class Op:
    """Registers `pyflash::<name>` for every device and for fake tensors. The autograd formula, which only an operator
    outside of our functions meets (an exported program's, say), differentiates the reference, or raises.

    Args:
        schema: as torch.library takes it; the last argument is `str backend`.
        outputs: (*arguments) -> tuple of new tensors; real and fake calls share it.
        reference: (*arguments without backend) -> tuple of tensors, in torch operations.
        differentiable: the derivative of the reference is the operator's.
        flops: (*arguments) -> what FlopCounterMode counts, where the operator multiplies matrices (flops.py).
        kernels: backend name -> "module:function", imported on first use.
    """

    paranoid = False  # tests: outputs arrive filled with NaN and a guard behind them is checked after the call

    def __init__(self, schema: str, *, outputs, reference, differentiable: bool = False, flops=None, **kernels: str):
        self.name = schema[: schema.index("(")]
        self.outputs, self.reference, self.flops, self.kernels = outputs, reference, flops, kernels
        self._found: dict[tuple[str, str], object] = {}  # (wish, device) -> implementation; None: the reference
        returns = schema.split("->")[1].strip()
        self.single, self.is_list = returns == "Tensor", returns == "Tensor[]"
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, self._run_dispatched, "CompositeExplicitAutograd")
        torch.library.register_fake(f"pyflash::{self.name}", self._fake, lib=LIBRARY)
        formula = (self._differentiate, _save_inputs) if differentiable else (self._no_formula, None)
        torch.library.register_autograd(f"pyflash::{self.name}", formula[0], setup_context=formula[1], lib=LIBRARY)
        self._call = getattr(torch.ops.pyflash, self.name).default
        OPS[self.name] = self

    def _fake(self, *args):
        outputs = self.outputs(*args[:-1])
        return outputs[0] if self.single else list(outputs) if self.is_list else outputs

    def _no_formula(self, ctx, *grads):
        raise NotImplementedError(
            f"pyflash::{self.name} has no derivative of its own; call the function in pyflash.functional"
        )

    def _differentiate(self, ctx, *grads):
        inputs = [other if t is None else t for t, other in zip(ctx.saved_tensors, ctx.others)]
        found = vjp(lambda *flat: self.reference(*tree_unflatten(flat, ctx.spec)), inputs, grads)
        given, found = tree_unflatten(inputs, ctx.spec), tree_unflatten(found, ctx.spec)
        # A list of numbers has one gradient, None, and not one for each.
        are_numbers = [isinstance(v, list) and not any(isinstance(t, torch.Tensor) for t in v) for v in given]
        return *(None if is_list else g for g, is_list in zip(found, are_numbers)), None

    def _run_dispatched(self, *args):
        _expect_memory(self.name, args)
        return self(*args, is_dispatched=True)

    def __call__(self, *args, is_dispatched=False):
        """The operator. torch's dispatcher, which takes 5 us, is passed by where it need not see the call."""
        if not is_dispatched and _is_observed(args):
            return self._call(*args)
        *args, wish = args
        first = _first(args)
        place = (wish, "cpu" if first.is_cpu else checks.device_type(first))
        try:
            kernel = self._found[place]
        except KeyError:
            kernel = self._found[place] = implementation(self.name, self.kernels, *place)
        if kernel is None:
            with _in_reach_of_autograd(), torch.no_grad():
                found = self.reference(*args)
                # A compiled graph was promised these strides.
                outputs = tuple(
                    ours if ours.stride() == promised.stride() else promised.copy_(ours)
                    for ours, promised in zip(found, self.outputs(*args), strict=True)
                )
        else:
            outputs = self.outputs(*args)
            if Op.paranoid:
                self._run_guarded(kernel, args, outputs := tuple(map(poisoned, outputs)))
            else:
                if place[1] == "cpu":
                    for output in outputs:
                        if output.nbytes >= LARGE_BYTES:
                            _prefer_large_pages(output)
                kernel(*args, *outputs)
        return outputs[0] if self.single else list(outputs) if self.is_list else outputs

    def _run_guarded(self, kernel, args, outputs):
        kernel(*args, *outputs)
        expect_guards(f"pyflash::{self.name}", outputs)


def implementation(operation: str, kernels: dict[str, str], wish: str, device: str):
    """What computes this wish on a device, of kernels as `Op` is given them; None is the reference."""
    names = (wish,) if wish != "auto" else backends.ORDER if device != "cpu" else ("cpu",)
    for name in names:
        if name in kernels and not backends.why_not(name, device):
            module, function = kernels[name].split(":")
            found = getattr(import_module(module), function)
            return partial(_on_its_device, found) if device == "cuda" and not backends.INTERPRETING else found
    if wish in ("auto", "torch"):
        return None
    why = backends.why_not(wish, device) or f"{wish} has no such kernel"
    raise NotImplementedError(f'pyflash::{operation}: {why}; use_backend("torch") serves it')


def _first(args):
    """The tensor whose device decides, or what has its device; the first argument may be a list of tensors."""
    return args[0][0] if type(args[0]) is list else args[0]


def _on_its_device(kernel, *args):
    """A launch goes to the current device, which another GPU's tensors do not change."""
    device = _first(args).device
    if device.index == torch.cuda.current_device():
        return kernel(*args)
    with torch.cuda.device(device):
        return kernel(*args)


def expect_guards(name: str, outputs) -> None:
    """Raises where something was written behind an output that `poisoned` made."""
    for i, output in enumerate(outputs):
        guard = output.as_strided((GUARD,), (1,), output.storage_offset() + span_of(output))
        if not bool((guard == GUARD_VALUE).all()):
            raise AssertionError(f"{name} wrote behind its output {i}")


def _prefer_large_pages(output):
    if not backends.MISSING["cpu"]:
        from pyflash.ops.core.native import in_large_pages

        in_large_pages(output)


def _save_inputs(ctx, inputs, output):
    flat, ctx.spec = tree_flatten(inputs[:-1])  # without the backend
    ctx.save_for_backward(*(v if isinstance(v, torch.Tensor) else None for v in flat))
    ctx.others = [None if isinstance(v, torch.Tensor) else v for v in flat]


_VALUES = frozenset((type(None), bool, int, float, str))  # the rest of a schema's arguments, but for lists


def _is_observed(args) -> bool:
    """Must the call be seen by torch's dispatcher: traced, transformed, profiled, on tensors that are none of torch's,
    on the imaginary part of a conjugate, whose memory holds the negative of its values until the dispatcher copies it, or
    on a tensor without memory, which is refused there?
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd._profiler_enabled()
        or _first(args).is_meta
    ):
        return True
    return _has_unusual(args)


def _has_unusual(args) -> bool:
    for a in args:
        kind = type(a)
        if kind in PLAIN_TYPES:
            if a.is_neg() or (not a.data_ptr() and a.numel()):
                return True
        elif kind not in _VALUES and (isinstance(a, torch.Tensor) or (kind is list and _has_unusual(a))):
            return True
    return False


def _expect_memory(operation, args):
    """A storage may be freed under a tensor (FSDP does so between uses): a kernel would read address 0."""
    for a in args:
        if type(a) is list:
            _expect_memory(operation, a)
        elif type(a) in PLAIN_TYPES and not a.data_ptr() and a.numel():
            raise RuntimeError(
                f"pyflash::{operation}: a tensor of shape {tuple(a.shape)} has no memory; its storage was freed or is"
                " not allocated yet"
            )


def _in_reach_of_autograd():
    """An operator runs below autograd, where nothing is recorded; the reference of a backward differentiates."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def span_of(tensor: torch.Tensor) -> int:
    """Elements from the first to the last one of a tensor, in memory."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))


def poisoned(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and type, full of NaN, with guard elements behind it; no view, which a result in
    use is not either."""
    span = span_of(tensor)
    memory = torch.full((span + GUARD,), GUARD_VALUE, dtype=tensor.dtype, device=tensor.device)
    memory[:span] = float("nan") if tensor.dtype.is_floating_point else 85
    if type(memory) is not torch.Tensor:  # of a device that tests stand in for, whose tensors have no storage to share
        return memory.as_strided(tensor.shape, tensor.stride())
    return memory.new_empty(0).set_(memory.untyped_storage(), 0, tensor.shape, tensor.stride())
