"""What the tests of every operation share: run forward and backward, compare with float64, visit backends."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext

import pytest
import stand_in
import torch
from torch.utils._pytree import tree_flatten, tree_map

import pyflash
from pyflash.ops.core import backends

# Where the Triton kernels' tests make their tensors. In the interpreter that is the CPU, or what stands in for a device.
STAND_IN = os.environ.get("PYFLASH_STAND_IN", "0") == "1" and backends.INTERPRETING
DEVICE = "cuda" if STAND_IN or (torch.cuda.is_available() and not backends.INTERPRETING) else "cpu"

# What a GPU's exp2 may be off by, and libm's is not: ex2.approx, 2 ulp (PTX ISA). A softmax has it twice, in what is
# divided and in the sum that divides, or in the logarithm that stands for the sum.
SOFTMAX_ULP = 4.0 if DEVICE == "cuda" and not STAND_IN else 0.0


def is_of_device(backend: str) -> bool:
    """Do the tests of this backend make their tensors on `DEVICE`?"""
    return backend == "triton" or (backend == "cuda" and not backends.CUDA_ON_HOST)


def has_gpus_arithmetic(backend: str) -> bool:
    """Is this backend's exp2, tanh or division a GPU's, or another than the C++ core's: does `gpu_ulp` belong to it?"""
    return backend.startswith("cuda") or (backend == "triton" and not backends.INTERPRETING)


def on_device(device):
    """Context manager: tensors are made on `device` unless they say otherwise."""
    return stand_in.device(device) if STAND_IN else torch.device(device)


def needs_values(backend):
    """Skips a test of what is wrong about values, of indices say, where a GPU has them and nobody looks."""
    if is_of_device(backend) and DEVICE != "cpu":
        pytest.skip("values on a GPU are not read")


def by_cpu(function):
    """`function` and its gradients as the CPU computes them, for tensors of any device.

    torch's meaning is asked of its CPU kernels: on CUDA some give other numbers (hardsigmoid of float64), other places of
    NaN (rms_norm), other gradients (nearest by a scale) or other formats (group_norm, pad).
    """
    if DEVICE == "cpu" or STAND_IN:
        return function

    def moved(*args):
        tensors = [t for t in tree_flatten(args)[0] if isinstance(t, torch.Tensor)]
        with torch.device("cpu"):
            results = function(*tree_map(lambda v: v.cpu() if isinstance(v, torch.Tensor) else v, args))
        return tree_map(lambda v: v.to(tensors[0].device) if isinstance(v, torch.Tensor) else v, results)

    return moved


def on_its_device(value):
    """A tensor that was made when the tests were collected, or the tensors of a dictionary, where this test's are made."""
    if isinstance(value, dict):
        return {name: on_its_device(item) for name, item in value.items()}
    return value.to(torch.empty(0).device) if isinstance(value, torch.Tensor) else value


FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def cpu_isas() -> list[str]:
    """Instruction sets of the native module that this machine runs; empty when it is not built."""
    if os.environ.get("PYFLASH_TEST_ISA") == "best":  # make quick
        return [best_isa()] if best_isa() else []
    if backends.MISSING["cpu"]:
        return []
    from pyflash import _cpu

    return [name for name, built, supported in _cpu.isas() if built and supported]


def best_isa() -> str:
    """The one that the native module takes unasked; empty where it is not built."""
    if backends.MISSING["cpu"]:
        return ""
    from pyflash import _cpu

    return _cpu.isa()


# In which order the threads of a CUDA kernel run on the host (docs/cuda-on-host.md), and when cp.async copies.
CUDA_ORDERS = ("forward/lazy", "reverse_depth_first/eager", "random:1/lazy")


def cuda_params() -> list[str]:
    """cuda:<order> on the host, cuda on a GPU."""
    if not backends.CUDA_ON_HOST:
        return ["cuda"]
    orders = CUDA_ORDERS[1:2] if os.environ.get("PYFLASH_TEST_ISA") == "best" else CUDA_ORDERS
    return [f"cuda:{order}" for order in orders]


def backend_params(*names: str) -> list:
    """pytest parameters: "cpu:<isa>" for every instruction set, "triton", "cuda:<order>", "torch"; a missing backend is a
    skip."""
    params = []
    for name in names or ("cpu", "triton", "torch"):
        missing = backends.MISSING[name] if name != "torch" else ""
        if missing:
            params.append(pytest.param(name, marks=pytest.mark.skip(reason=f"{name}: {missing}")))
        elif name == "cpu":
            params += [f"cpu:{isa}" for isa in cpu_isas()]
        elif name == "cuda":
            params += cuda_params()
        else:
            params.append(name)
    return params


@contextmanager
def use_there(backend: str):
    """As `use`, where tensors are made inside, which are to be where the backend's kernels run."""
    with use(backend), on_device(DEVICE) if is_of_device(backend) else nullcontext():
        yield


@contextmanager
def use(backend: str):
    """`backend` as in `backend_params`."""
    name, _, isa = backend.partition(":")
    if not isa:
        # Not on the device by default: a tensor that our code makes without saying where must not get there by luck.
        with pyflash.use_backend(name), on_device("cpu") if DEVICE != "cpu" and is_of_device(name) else nullcontext():
            yield
        return
    if name == "cuda":
        from pyflash import _cuda_host

        _cuda_host.set_order(*isa.split("/"))
        with pyflash.use_backend(name):
            yield
        return
    from pyflash import _cpu

    before = _cpu.isa()
    assert _cpu.select_isa(isa)
    try:
        with pyflash.use_backend(name):
            yield
    finally:
        _cpu.select_isa(before)


def run(function, inputs, douts=None, dtype=None, backend=None):
    """Outputs and input gradients of `function(*inputs)`, as one tuple.

    Args:
        inputs: tensors (floating-point ones are leaves here and get gradients) and other values.
        douts: gradient for each output (or one for a single output); None: forward only.
        dtype: floating-point inputs and douts are converted to it first.
        backend: as in `use`; None calls `function` as it is.
    """

    def leaf(value):
        if not isinstance(value, torch.Tensor):
            return value
        if not value.is_floating_point():
            return value
        value = value.detach()
        if dtype is not None and value.dtype != dtype:
            value = torch.empty_like(value, dtype=dtype).copy_(value)
        return value.requires_grad_(douts is not None)

    leaves = [leaf(v) for v in inputs]
    context = use(backend) if backend else nullcontext()
    with context:
        outputs = truth(function, leaves) if dtype == torch.float64 and not backend else function(*leaves)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)
        if douts is None:
            return outputs
        douts = (douts,) if isinstance(douts, torch.Tensor) else douts
        wanted = [v for v in leaves if isinstance(v, torch.Tensor) and v.requires_grad]
        grads = torch.autograd.grad(outputs, wanted, [d.to(o.dtype) for d, o in zip(douts, outputs)], allow_unused=True)
    return (*(o.detach() for o in outputs), *grads)


def truth(function, inputs):
    """By the CPU, unless `function` brings tensors of a device."""
    try:
        return by_cpu(function)(*inputs)
    except RuntimeError:
        return function(*inputs)


def relative_error(x, truth):
    """|x - truth| / |truth|, Frobenius."""
    return ((x - truth).norm() / truth.norm().clamp_min(torch.finfo(torch.float64).tiny)).item()


def assert_error_within(ours, torchs, truth, *scales, factor=2.0, floor_ulp=4.0, half_relative=None):
    """Our error against float64 is at most `factor` times PyTorch's own, plus `floor_ulp` ulp of the largest term.

    In half types that allows as much as one key's share of an average of many; with `half_relative` the error of the
    whole is also at most that part of it, or `factor` times PyTorch's where that is worse.

    The largest term is max(|truth|, |scales|): where a result cancels, the ulp is that of what was added.
    All arguments are tuples as `run` gives them; places where the truth is NaN or infinite must agree exactly.
    """
    assert len(ours) == len(torchs) == len(truth)
    for i, (our, their, true) in enumerate(zip(ours, torchs, truth)):
        if true is None or our is None:
            assert our is None and true is None, f"result {i}: one side has no gradient"
            continue
        assert our.shape == true.shape, f"result {i}: shape {tuple(our.shape)}, expected {tuple(true.shape)}"
        assert our.dtype == their.dtype, f"result {i}: dtype {our.dtype}, expected {their.dtype}"
        if true.numel() == 0:
            continue
        if not our.dtype.is_floating_point:  # indices
            assert torch.equal(our, their), f"result {i}: other numbers than torch's"
            continue
        finite = true.isfinite()
        our64, their64, true64 = our.double(), their.double(), true.double()
        finite &= their64.isfinite()
        torch.testing.assert_close(
            our64[~finite],
            their64[~finite],
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda m, i=i: f"result {i}, not finite: {m}",
        )
        if not finite.any():
            continue
        term = max([true64[finite].abs().max().item()] + [s.double().abs().max().item() for s in scales if s.numel()])
        if our.dtype == torch.float64:
            floor = 4 * floor_ulp  # the truth is torch's own result here, and as uncertain
        else:
            floor = floor_ulp
        allowed = factor * (their64 - true64)[finite].abs().max().item() + floor * torch.finfo(our.dtype).eps * term
        error = (our64 - true64)[finite].abs().max().item()
        assert error <= allowed, f"result {i}: error {error:.3e}, allowed {allowed:.3e}"
        if half_relative is not None and our.dtype.itemsize == 2:
            error, their_error = (relative_error(x[finite], true64[finite]) for x in (our64, their64))
            allowed = max(half_relative, factor * their_error)
            assert error <= allowed, f"result {i}: relative error {error:.3e}, allowed {allowed:.3e}"
