"""A device without a GPU: CPU tensors that say they are on "cuda", and refuse to meet tensors that are not.

What it shows is what the interpreter on CPU tensors cannot: a test or a launcher that makes a tensor without saying
where. Values are computed on the CPU, kernels by the interpreter. `PYFLASH_STAND_IN=1 pytest` runs the tests of the triton backend on it.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
MOVES = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}  # operators that may mix devices


class OnDevice(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)
        outer = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout)
        outer.inner = inner
        return outer

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        expect_one_device(func, (args, kwargs))
        if func.namespace == "pyflash":  # our own code below the dispatcher sees the device too
            from pyflash.ops.core.registry import OPS

            with Constructors("cpu"):
                return OPS[func._schema.name.split("::")[1]](*args, is_dispatched=True, **kwargs)
        kwargs.pop("device", None)
        outer = {id(t.inner): t for t in tree_flatten((args, kwargs))[0] if isinstance(t, OnDevice)}
        inner_args, inner_kwargs = tree_map(unwrap, (args, kwargs))
        return tree_map(lambda t: outer.get(id(t), wrap(t)), func(*inner_args, **inner_kwargs))


def wrap(value):
    return OnDevice(value) if type(value) is torch.Tensor else value


def unwrap(value):
    return value.inner if isinstance(value, OnDevice) else value


def expect_one_device(func, arguments):
    tensors = [t for t in tree_flatten(arguments)[0] if isinstance(t, torch.Tensor)]
    on_device = [isinstance(t, OnDevice) for t in tensors]
    elsewhere = [t for t, on in zip(tensors, on_device) if not on and t.dim() > 0]
    if any(on_device) and elsewhere and getattr(func, "overloadpacket", func).__name__ not in MOVES:
        raise RuntimeError(
            f"{func}: expected all tensors to be on one device, found cuda and cpu {[tuple(t.shape) for t in elsewhere]}"
        )


class Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, to_device):
        ctx.to_device = to_device
        return OnDevice(x.detach().clone()) if to_device else x.inner.clone()

    @staticmethod
    def backward(ctx, dy):
        return Move.apply(dy, not ctx.to_device), None


def is_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


class Constructors(TorchFunctionMode):
    """Makes tensors on the stand-in where "cuda" is asked for, or nothing is and it is the default."""

    def __init__(self, default):
        self.default = default

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _device_constructors():
            device = kwargs.pop("device", None) or self.default
            if not is_cuda(device):
                return func(*args, **kwargs, device=device)
            if kwargs.get("generator") is not None:
                raise RuntimeError("expected a 'cuda' device type for generator, found 'cpu'")
            requires_grad = kwargs.pop("requires_grad", False)
            if func in (torch.as_tensor, torch.asarray) and isinstance(args[0], OnDevice):
                return args[0]
            return OnDevice(func(*args, **kwargs, device="cpu")).requires_grad_(requires_grad)
        if func in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self.move(func, *args, **kwargs)
        if func is torch.Tensor.tolist:
            return unwrap(args[0]).tolist()
        if is_cuda(kwargs.get("device")):
            del kwargs["device"]
        return func(*args, **kwargs)

    def move(self, func, x, *args, **kwargs):
        if func is not torch.Tensor.to:
            target, rest = "cuda" if func is torch.Tensor.cuda else "cpu", {}
        else:
            like = args[0] if args and isinstance(args[0], torch.Tensor) else None
            target, dtype, _, memory_format = torch._C._nn._parse_to(
                *args, **{k: v for k, v in kwargs.items() if k != "copy"}
            )
            target = like.device if like is not None else target
            rest = {"dtype": dtype or x.dtype, "copy": kwargs.get("copy", False)}
            if memory_format is not None:
                rest["memory_format"] = memory_format
        if target is not None and is_cuda(target) != isinstance(x, OnDevice):
            x = Move.apply(x, is_cuda(target))
        return torch.Tensor.to(x, **rest) if rest else x


@contextmanager
def device(default="cuda"):
    """Inside, "cuda" is the stand-in, and tensors are made on `default`."""
    from triton.runtime import interpreter

    from pyflash.ops.attention import shapes
    from pyflash.ops.core import checks

    run = interpreter.GridExecutor.__call__

    def on_inner(self, *args, **kwargs):
        expect_one_device(self.fn, (args, kwargs))
        return run(self, *tree_map(unwrap, args), **tree_map(unwrap, kwargs))

    engine = torch.autograd._engine_run_backward

    def backward(*args, **kwargs):  # torch takes this mode away while it differentiates
        with Constructors("cpu"):
            return engine(*args, **kwargs)

    def or_on_device(function):  # elsewhere a subclass with its own dispatch is refused
        return lambda tensor: isinstance(tensor, OnDevice) or function(tensor)

    with (
        patch.object(interpreter.GridExecutor, "__call__", on_inner),
        patch.object(torch.autograd, "_engine_run_backward", backward),
        patch.object(checks, "_is_traced", or_on_device(checks._is_traced)),
        patch.object(shapes, "_is_plain_mask", or_on_device(shapes._is_plain_mask)),
        Constructors(default),
    ):
        yield
