"""Derivatives through torch operations: where a kernel's own derivative ends, torch's begins."""

from __future__ import annotations

import functools
from contextlib import nullcontext

import torch


class Function(torch.autograd.Function):
    """An autograd function whose backward also takes gradients that vmap has batched: torch.func.vmap over
    torch.autograd.grad, or the older vmap behind `is_grads_batched=True`, torch.autograd.functional's `vectorize=True`
    and gradcheck. They are computed one after another: a kernel reads memory that is laid out as it knows."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.backward = staticmethod(_one_by_one(cls.backward))


def _one_by_one(backward):
    @functools.wraps(backward)
    def batchable(ctx, *grads):
        vmap = None if torch.compiler.is_compiling() else _vmap_of(grads)
        if vmap is None:
            return backward(ctx, *grads)
        unwrap, wrap, below = vmap
        with below:
            slices = [unwrap(g) if g is not None else None for g in grads]
            size = next((len(g) for g in slices if isinstance(g, _Batch)), None)
            if size is None:
                return backward(ctx, *grads)
            found = [backward(ctx, *(g[i] if isinstance(g, _Batch) else g for g in slices)) for i in range(size)]
            stacked = [None if column[0] is None else torch.stack(column) for column in zip(*found)]
        return tuple(g if g is None else wrap(g) for g in stacked)

    return batchable


class _Batch(tuple):
    """The gradients that a batched one stands for."""


def _vmap_of(grads):
    """(unwrap: a gradient or the `_Batch` that it stands for; wrap: its reverse on a stack; a context to compute in),
    or None where nothing is batched."""
    if torch._C._are_functorch_transforms_active():
        from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter

        vmap = retrieve_current_functorch_interpreter()
        if not isinstance(vmap, VmapInterpreter):
            return None
        level, functorch = vmap.level(), torch._C._functorch

        def unwrap(g):
            g, dim = functorch._unwrap_batched(g, level)
            return g if dim is None else _Batch(g.unbind(dim))

        return unwrap, lambda g: functorch._add_batch_dim(g, 0, level), vmap.lower()
    is_batched = torch._C._functorch.is_legacy_batchedtensor
    if not any([g is not None and is_batched(g) for g in grads]):
        return None
    level = max(torch._C._vmapmode_increment_nesting() - 1, 1)  # 1: a thread of the engine's own counts from zero
    torch._C._vmapmode_decrement_nesting()

    def unwrap(g):
        return _Batch(torch._remove_batch_dim(g, level, 1, 0).unbind()) if is_batched(g) else g

    return unwrap, lambda g: torch._add_batch_dim(g, 0, level), nullcontext()


def apply(function: type[torch.autograd.Function], *args):
    """`function.apply(*args)`, without what it costs: it binds the arguments by their signature, 30 us a call.

    Where no gradient can be asked for, the forward alone.
    """
    call, args = way(function, args)
    return call(*args)


def way(function: type[torch.autograd.Function], args):
    """What `apply` calls, and with which arguments. `choose` sends calls under torch.func transforms to torch, but a
    backward may still run under one."""
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._are_functorch_transforms_active():
        return function.apply, args
    # An exported program holds operators, which have derivatives of their own; a strict export would put those of a
    # function under no_grad.
    if torch.is_grad_enabled() and not (is_compiling and torch.compiler.is_exporting()):
        for a in args:
            if isinstance(a, torch.Tensor) and a.requires_grad:
                if is_compiling:
                    return function.apply, _distinct(args)
                return super(torch.autograd.Function, function).apply, args  # type: ignore[misc]  # C++'s
    return function.forward, args


def _distinct(args):
    """Dynamo takes no tensor twice: attention of x to itself, one cu_seqlens for queries and keys."""
    distinct = []
    for a in args:
        if isinstance(a, torch.Tensor) and any(a is b for b in distinct):
            a = a.view_as(a)
        distinct.append(a)
    return distinct


def wanted(ctx, count: int) -> tuple[bool, ...]:
    """Of the first `count` arguments of a function, tensors or, last, None: whose gradients the backward under way wants.

    `needs_input_grad` is told in the forward, and says which it may want. A gradient penalty then wants that of the picture
    alone, and a generator's step none of the discriminator's weights: half of a convolution's backward. torch's functions
    know. To ask takes 0.2 us, and 13 for a leaf that torch.autograd.grad was given (Zen 4).
    """
    needed = ctx.needs_input_grad[:count]
    if torch.compiler.is_compiling():
        return needed
    return tuple([is_needed and _is_wanted(ctx.next_functions[i][0]) for i, is_needed in enumerate(needed)])


def _is_wanted(node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # it is a leaf that torch.autograd.grad was given, or no engine runs
        return True


def leaf(t: torch.Tensor | None):
    """t, or the same numbers as something to differentiate by."""
    return t if t is None or t.requires_grad else t.detach().requires_grad_()


def shaped(result: torch.Tensor, shape) -> torch.Tensor:
    """The result of an operation, of which nobody else holds anything, in another shape, and no view of it to autograd, as
    torch's own results are none: in-place operations on views drop hooks (FSDP2 hangs its backward on one)."""
    return torch.ops.aten._unsafe_view.default(result, shape)


def vjp(function, inputs, grad_outputs):
    """The gradients of `function(*inputs)` for `grad_outputs`, differentiable again to any order.

    Args:
        function: differentiable torch operations, returning a tensor or a tuple of them.
        inputs: tensors or other values; a tensor that requires no gradient gets None.
        grad_outputs: one for each output of `function`, None where there is none.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh aliases: the gradient of one input must not pass through another that was computed from it.
        aliases = [t.view_as(t) if isinstance(t, torch.Tensor) and t.requires_grad else t for t in inputs]
        outputs = function(*aliases)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        pairs = [(o, g) for o, g in zip(outputs, grad_outputs) if g is not None and o.requires_grad]
        wanted = [t for t in aliases if isinstance(t, torch.Tensor) and t.requires_grad]
        if not pairs or not wanted:
            return tuple(None for _ in inputs)
        grads = iter(
            torch.autograd.grad(
                [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, allow_unused=True
            )
        )
    return tuple(next(grads) if isinstance(t, torch.Tensor) and t.requires_grad else None for t in aliases)
