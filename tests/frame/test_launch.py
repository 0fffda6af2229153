"""kernels/launch.py: a remembered launch is the launch that Triton would make. With a driver that records and launches
nothing (benchmarks/host.py), each in a process of its own, where kernels are compiled and not interpreted."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


def told(value):
    """What a launch was given, without the memory it was given in."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.stride(), value.data_ptr() % 16
    if isinstance(value, tuple):
        return type(value), *map(told, value)
    return type(value), value


def both_ways(stub, call):
    """The launches of a call, Triton's own way and remembered; the second is of a call that was made before."""
    from benchmarks import host

    found = []
    for way in (host.plain_launches(), None):
        for _ in range(2):
            stub.launches.clear()
            torch.manual_seed(0)
            if way is None:
                call()
            else:
                with host.plain_launches():
                    call()
        found.append([(function, grid, stream, told(arguments)) for function, grid, stream, arguments in stub.launches])
    return found


def offset(*shape, dtype=torch.bfloat16, by=0):
    """A tensor whose memory begins `by` elements behind an aligned address."""
    size = int(torch.Size(shape).numel())
    return torch.zeros(size + by, dtype=dtype)[by:].view(shape)


def scenario_every_call(stub):
    """... and Triton's own launch is not asked a second time."""
    from benchmarks import host

    for name, call in host.calls().items():
        with torch.set_grad_enabled("backward" in name):
            plain, cached = both_ways(stub, call)
        assert plain == cached and plain, name

    from pyflash.kernels import linear

    def refuse(*_, **__):
        raise AssertionError("Triton's own launch was asked again")

    linear._matmul.kernel.run = refuse  # on the instance: the class is as it was
    assert not linear._matmul.is_watched()
    host.calls()["linear"]()


def scenario_what_a_kernel_is_compiled_for(stub):
    """Sizes that are 1, a multiple of 16 or neither, addresses that are not a multiple of 16 bytes, types, None."""
    import pyflash.functional as PF

    by_alignment = {}
    for M, N, K, dtype, by in (
        (16, 64, 64, torch.bfloat16, 0),
        (16, 64, 64, torch.bfloat16, 1),
        (16, 64, 64, torch.float16, 0),
        (1, 64, 64, torch.bfloat16, 0),
        (17, 33, 65, torch.bfloat16, 0),
    ):
        x, weight = offset(M, K, dtype=dtype, by=by), offset(N, K, dtype=dtype, by=by)
        plain, cached = both_ways(stub, lambda x=x, weight=weight: PF.linear(x, weight))
        assert plain == cached
        if (M, dtype) == (16, torch.bfloat16):
            by_alignment[by] = plain[0][0]
    assert by_alignment[0] != by_alignment[1]  # another kernel, which reads fewer bytes at a time
    for x in map(offset, (16, 17, 1, 32, 160)):
        plain, cached = both_ways(stub, lambda x=x: PF.gelu(x))
        assert plain == cached
    q = offset(1, 2, 16, 64)
    for options in ({}, {"is_causal": True}, {"scale": 1.0}):
        plain, cached = both_ways(stub, lambda options=options: PF.scaled_dot_product_attention(q, q, q, **options))
        assert plain == cached


def scenario_devices_and_streams(stub):
    import pyflash.functional as PF

    x = offset(16, 64)

    def launched():
        stub.launches.clear()
        PF.gelu(x)
        ((function, _, stream, _),) = stub.launches
        return function, stream

    first = [launched(), launched()]
    stub.stream = 9
    assert launched() == (first[0][0], 9) and first == [(first[0][0], 7)] * 2
    stub.device = 1
    other = [launched(), launched()]
    assert other[0] == other[1] and other[0][0] != first[0][0]  # a kernel is loaded on each device
    stub.device = 0
    assert launched() == (first[0][0], 9)


def scenario_who_watches_sees_every_launch(stub):
    from triton import knobs
    from triton.runtime.jit import JITFunction

    from pyflash.kernels.pointwise import activation

    kernel = activation._activation_fwd
    assert not kernel.is_watched()
    hooks = knobs.runtime.launch_enter_hook
    if hasattr(hooks, "add"):
        hooks.add(print)
        assert kernel.is_watched()
        hooks.remove(print)
    run = JITFunction.run
    JITFunction.run = lambda self, *args, **kwargs: run(self, *args, **kwargs)
    assert kernel.is_watched()
    JITFunction.run = run
    assert not kernel.is_watched()


def scenario_what_is_remembered_has_an_end(stub):
    import pyflash.functional as PF
    from pyflash.kernels import launch
    from pyflash.kernels.pointwise import activation

    launch._MOST = 4
    for size in range(1, 11):
        PF.gelu(torch.zeros(size))
    assert 0 < len(activation._activation_fwd.launches) <= 4


@pytest.mark.parametrize("name", [name for name in dict(globals()) if name.startswith("scenario_")])
@pytest.mark.slow
def test_launch(name):
    environ = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = f"from tests.frame import test_launch; test_launch.in_a_process('{name}')"
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), str(ROOT), environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def in_a_process(name):
    from benchmarks import host

    with host.stubbed() as stub, torch.no_grad():
        globals()[name](stub)


def test_constants_come_last():
    """Which the launch relies on; in the interpreter nothing is decorated."""
    from pyflash.kernels import launch

    class Parameter:
        def __init__(self, is_constexpr):
            self.is_constexpr, self.do_not_specialize, self.name = is_constexpr, False, "x"

    class Kernel:
        fn, __name__, params = staticmethod(len), "kernel", [Parameter(True), Parameter(False)]

    assert launch.cached(test_launch) is test_launch
    with pytest.raises(TypeError, match="after its first constant"):
        launch._Cached(Kernel())
