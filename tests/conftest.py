"""Set before anything is imported: where there is no GPU, Triton kernels run in the interpreter on CPU tensors."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import helpers
import pytest

from pyflash.ops.core.registry import Op


def pytest_configure(config):
    # Not in pyproject.toml: pytest would import pyflash for it before this file chooses the interpreter.
    config.addinivalue_line("filterwarnings", "error::pyflash.FallbackWarning")


def pytest_collection_modifyitems(items):
    for item in items:
        if "triton" in str(getattr(getattr(item, "callspec", None), "params", {}).get("backend")):
            item.add_marker("triton")


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
    """Tests of the triton backend make their tensors on the GPU, where there is one; all others on the CPU."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("backend") == "triton" or request.node.get_closest_marker("on_device"):
        with helpers.on_device(helpers.DEVICE):
            yield
    else:
        yield
