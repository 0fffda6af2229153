"""Derivatives through torch operations: where a kernel's own derivative ends, torch's begins."""

from __future__ import annotations

import torch


def apply(function: type[torch.autograd.Function], *args):
    """`function.apply(*args)`, without what it costs: it binds the arguments by their signature, 30 us a call.

    Where no gradient can be asked for, the forward alone. `choose` sends calls under torch.func transforms to torch, but
    a backward may still run under one.
    """
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling and torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    if torch.is_grad_enabled():
        for a in args:
            if isinstance(a, torch.Tensor) and a.requires_grad:
                if is_compiling:
                    return function.apply(*_distinct(args))
                return super(torch.autograd.Function, function).apply(*args)
    return function.forward(*args)


def _distinct(args):
    """Dynamo takes no tensor twice: attention of x to itself, one cu_seqlens for queries and keys."""
    distinct = []
    for a in args:
        if isinstance(a, torch.Tensor) and any(a is b for b in distinct):
            a = a.view_as(a)
        distinct.append(a)
    return distinct


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
