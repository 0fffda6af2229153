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

# Cases of one test function, drawn by lot, the same in every run, since neighbours differ in one parameter only:
QUICK_CASES = 4  # of `--quick`: enough that most mistakes are seen, and a suite of any size takes under a minute
INTERPRETED_CASES = 4  # in Triton's interpreter, a second each and more, that are not slow for being many


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help=f"no slow tests, no interpreter, {QUICK_CASES} cases of each test"
    )


def pytest_configure(config):
    # Not in pyproject.toml: pytest would import pyflash for it before this file chooses the interpreter.
    config.addinivalue_line("filterwarnings", "error::pyflash.FallbackWarning")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(config, items):
    for item in items:
        backend = str(getattr(getattr(item, "callspec", None), "params", {}).get("backend")).partition(":")[0]
        if backend in ("triton", "cuda"):
            item.add_marker(backend)
    quick = [item for item in items if not item.get_closest_marker("slow")]
    interpreted = [item for item in quick if item.get_closest_marker("triton") and not torch.cuda.is_available()]
    for item in set(interpreted).difference(drawn(interpreted, INTERPRETED_CASES)):
        item.add_marker("slow")
    if config.getoption("--quick"):
        kept = drawn([item for item in quick if not item.get_closest_marker("triton")], QUICK_CASES)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def drawn(items, cases):
    """Of each test function at most so many."""
    functions = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    lots = (random.Random(name).sample(of_one, min(cases, len(of_one))) for name, of_one in functions.items())
    return {item for lot in lots for item in lot}


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
