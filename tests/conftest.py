"""Set before anything is imported: where there is no GPU, Triton kernels run in the interpreter on CPU tensors, and those of
CUDA C++ on the host."""

import os
import random

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("PYFLASH_CUDA_HOST", "1")

import helpers
import pytest

from pyflash.ops.core.registry import Op

QUICK_CASES = (
    4  # of one test function: enough that most mistakes are seen, and a suite of any size takes under a minute
)


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help=f"no slow tests, no interpreter, {QUICK_CASES} cases of each test"
    )


def pytest_configure(config):
    # Not in pyproject.toml: pytest would import pyflash for it before this file chooses the interpreter.
    config.addinivalue_line("filterwarnings", "error::pyflash.FallbackWarning")


def pytest_collection_modifyitems(config, items):
    for item in items:
        backend = str(getattr(getattr(item, "callspec", None), "params", {}).get("backend")).partition(":")[0]
        if backend in ("triton", "cuda"):
            item.add_marker(backend)
    if config.getoption("--quick"):
        kept = set(drawn(items))
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def drawn(items):
    """The cases that `--quick` runs: by lot, but the same in every run, since neighbours differ in one parameter only."""
    cases = {}
    for item in items:
        if not (item.get_closest_marker("slow") or item.get_closest_marker("triton")):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for name, of_one in cases.items():
        yield from random.Random(name).sample(of_one, min(QUICK_CASES, len(of_one)))


@pytest.fixture(autouse=True)
def paranoid():
    """Every output a kernel gets is full of NaN and has guard elements behind it."""
    Op.paranoid = True
    yield
    Op.paranoid = False


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def on_its_device(request, seeded):
    """Tests of the backends of GPUs make their tensors on one, where there is one; all others on the CPU."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if helpers.is_of_device(str(parameters.get("backend"))) or request.node.get_closest_marker("on_device"):
        with helpers.on_device(helpers.DEVICE), torch.backends.cudnn.flags(allow_tf32=False):
            yield
    else:
        yield
