"""A native module of other sources than the Python beside it is not used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyflash.ops.core import backends, contract
from tests.frame.test_native_build import build

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """pyflash with its native module, and the sources that it is of."""
    ignored = shutil.ignore_patterns("__pycache__", "cpu")
    shutil.copytree(ROOT / "pyflash", tmp_path / "pyflash", ignore=ignored)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc", ignore=ignored)
    return tmp_path


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_the_contract_is_what_the_structs_say(checkout):
    csrc = checkout / "csrc"
    first = contract.contract(csrc)
    assert first == contract.contract() != ""
    edit(csrc / "common/norm.h", "\n", "  // a comment\n\n")
    assert contract.contract(csrc) == first
    for name in ("common/norm.h", "bindings/norm.h"):
        before = contract.contract(csrc)
        edit(csrc / name, "eps", "epsilon")
        assert contract.contract(csrc) != before
    before, of_cuda = contract.contract(csrc), contract.contract(csrc, contract.CUDA)
    edit(csrc / "bindings/cuda/norm.cpp", "layer_norm_bwd", "layer_norm_backward")
    assert contract.contract(csrc) == before and contract.contract(csrc, contract.CUDA) != of_cuda
    (csrc / "common/conv.h").write_text("struct Conv {};\n")
    assert contract.contract(csrc) != before
    assert contract.contract(checkout / "nowhere") == ""


def test_a_build_stamps_the_module():
    """In a flag of its compilation, so that setup.py compiles it again when the contract changed."""
    native = build()
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        stamped = [str(path) for _, path, flags in native.native_sources() if any("PF_CONTRACT" in f for f in flags)]
        flags = [f for _, _, all_flags in native.native_sources() for f in all_flags if "PF_CONTRACT" in f]
    finally:
        os.chdir(before)
    assert stamped == ["csrc/bindings/module.cpp"] and flags == [f'-DPF_CONTRACT="{contract.contract()}"']


CODE = """
import torch, warnings
import pyflash, pyflash.functional as F
from pyflash.ops.core import backends
print(backends.MISSING["cpu"])
try:
    with pyflash.use_backend("cpu"):
        F.relu(torch.randn(4))
except NotImplementedError as error:
    print(error)
warnings.simplefilter("ignore")
x = torch.randn(1 << 20)
torch.testing.assert_close(F.gelu(x, approximate="tanh"), torch.nn.functional.gelu(x, approximate="tanh"))
assert F.dropout(x, 0.5).shape == x.shape and F.layer_norm(x.view(1024, 1024), (1024,)).shape == (1024, 1024)
from pyflash.__main__ import main
main(["info"])
"""


def said_in(checkout):
    done = subprocess.run([sys.executable, "-c", CODE], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(bool(backends.MISSING["cpu"]), reason=backends.MISSING["cpu"])
@pytest.mark.slow
def test_a_module_of_other_sources_is_not_used(checkout):
    """It would take what it is handed for other fields and other addresses."""
    assert re.search(r"cpu +ready", said_in(checkout))
    edit(checkout / "csrc/common/norm.h", "eps", "epsilon")
    out = said_in(checkout)
    assert out.startswith("the native module was built from other sources") and "make build" in out.splitlines()[0]
    assert "pyflash.relu: the native module was built from other sources" in out
    shutil.rmtree(checkout / "csrc")  # a wheel: the two came together
    assert re.search(r"cpu +ready", said_in(checkout))
