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
# Of each of these so many are not slow for being many; `make test-all` has all.
CASES = {
    "triton": 2,  # in its interpreter, a second each and more, up to 40
    "cuda": 6,  # on the host, thread by thread, in several orders
    "another instruction set": 6,  # than this processor's best: the source is one
}


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help=f"no slow tests, no interpreter, {QUICK_CASES} cases of each test"
    )


def pytest_configure(config):
    # Not in pyproject.toml: pytest would import pyflash for it before this file chooses the interpreter.
    config.addinivalue_line("filterwarnings", "error::pyflash.FallbackWarning")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the markers
def pytest_collection_modifyitems(config, items):
    kinds = {}
    for item in items:
        backend = str(getattr(getattr(item, "callspec", None), "params", {}).get("backend"))
        name, _, isa = backend.partition(":")
        if name in ("triton", "cuda"):
            item.add_marker(name)
        kind = next((name for name in ("triton", "cuda") if item.get_closest_marker(name)), "")
        if name == "cpu" and isa not in ("", helpers.best_isa()):
            kind = "another instruction set"
        if not item.get_closest_marker("slow"):
            kinds.setdefault(kind, []).append(item)
    quick = [item for item in items if not item.get_closest_marker("slow")]
    for kind, cases in CASES.items():
        if kind in kinds and not (kind in ("triton", "cuda") and torch.cuda.is_available()):
            for item in set(kinds[kind]).difference(drawn(kinds[kind], cases)):
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
