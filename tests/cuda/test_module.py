"""The module of CUDA C++ kernels: when it serves, what it says when it does not, and what nvcc makes of it."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, backend_params, use

import pyflash
import pyflash.functional as PF
from pyflash.cli.explain import explain, info
from pyflash.ops.core import backends, contract
from pyflash.ops.core.choice import OURS, Refused, choose
from pyflash.ops.core.registry import OPS, implementation
from tests.frame.test_native_build import build
from tools import cuda_kernels

ROOT = Path(__file__).resolve().parents[2]

on_host = pytest.mark.skipif(
    not backends.CUDA_ON_HOST or bool(backends.MISSING["cuda"]), reason=backends.MISSING["cuda"] or "on a GPU"
)


@pytest.mark.parametrize("backend", backend_params("cuda"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_memory_that_is_not_aligned(backend, dtype):
    """Accesses of 16 bytes want addresses that are multiples of it, of every row."""
    for offset, cols, pitch in ((1, 64, 80), (0, 64, 65), (0, 61, 61), (2, 40, 48)):
        memory = torch.randn(offset + 6 * pitch).to(dtype)
        x = memory[offset:].view(6, pitch)[:, :cols].requires_grad_()
        dy = torch.randn(6, cols).to(dtype)
        for ours, theirs in (
            (PF.silu, F.silu),
            (lambda x: PF.layer_norm(x, (x.shape[1],)), lambda x: F.layer_norm(x, (x.shape[1],))),
            (lambda x: PF.softmax(x, 1), lambda x: F.softmax(x, 1)),
            (lambda x: PF.softmax(x, 0), lambda x: F.softmax(x, 0)),
        ):
            with use(backend):
                found = ours(x)
                gradient = torch.autograd.grad(found, x, dy)[0]
            truth = theirs(x.double())
            torch.testing.assert_close(found.double(), truth, atol=0.02, rtol=0.02)
            wanted = torch.autograd.grad(truth, x, dy.double())[0]
            torch.testing.assert_close(gradient, wanted, atol=0.04, rtol=0.04)


@pytest.mark.parametrize("backend", backend_params("cuda"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_pictures_that_are_not_aligned(backend, dtype):
    """Channels are taken four at once where every place begins at a multiple of that."""
    f, weight = PF.setup_filter([1, 3, 3, 1]), torch.randn(8, 1, 3, 3).to(dtype).requires_grad_()
    for offset, channels in ((0, 8), (1, 8), (2, 8), (0, 9)):
        memory = torch.randn(offset + 2 * 5 * 7 * channels).to(dtype)
        x = memory[offset:].view(2, 5, 7, channels)[..., :8].permute(0, 3, 1, 2).requires_grad_()
        for function in (
            lambda x, w, of: of.conv2d(x, w, padding=1, groups=8),
            lambda x, w, of: PF.upfirdn2d(x + 0 * w.sum(), f, down=2, padding=(1, 1, 1, 1)),
        ):
            with use(backend):
                found = function(x, weight, PF)
                dy = torch.randn(found.shape).to(found)
                gradients = torch.autograd.grad(found, (x, weight), dy)
            with use("torch"):
                wanted = function(x.double(), weight.double(), F)
                truths = torch.autograd.grad(wanted, (x, weight), dy.double())
            for ours, truth in zip((found, *gradients), (wanted, *truths)):
                torch.testing.assert_close(ours.double(), truth.double(), atol=0.1, rtol=0.04)


UNFIT = [  # architectures, the driver's CUDA, ours, GPUs, words of the reason
    ("80 90", 13000, 13000, [(9, 0)], ""),
    ("80", 13000, 13000, [(8, 6)], ""),  # machine code of the same major version
    ("90", 13000, 13000, [(12, 0)], ""),  # PTX
    ("80 90", 13010, 13000, [(8, 0), (9, 0)], ""),
    ("90", 12080, 13000, [(9, 0)], "the driver takes CUDA 12.8, and pyflash._cuda was built with 13.0"),
    ("90", 12040, 12080, [(9, 0)], ""),  # a minor version
    ("90", 12040, 12080, [(10, 0)], "built for sm_90; a GPU here is sm_100"),  # whose PTX the driver does not know
    ("90", 13000, 13000, [(8, 0)], "built for sm_90; a GPU here is sm_80"),
    ("86 90", 13000, 13000, [(9, 0), (8, 0)], "built for sm_86, sm_90; a GPU here is sm_80"),
    ("90", 0, 13000, [], "there is no NVIDIA driver"),
    ("90", 13000, 13000, [], "there is no GPU"),
]


@pytest.mark.parametrize("archs, driver, runtime, gpus, words", UNFIT)
def test_why_a_module_does_not_run_on_these_gpus(archs, driver, runtime, gpus, words):
    said = backends.unfit(archs, driver, runtime, gpus)
    assert words in said and bool(words) == bool(said)


@pytest.fixture
def both_on_a_gpu(monkeypatch):
    """As if a GPU were here, with Triton and CUDA C++, and no operation yet."""
    for name in ("triton", "cuda"):
        monkeypatch.setitem(backends.DEVICES, name, ("cuda",))
    monkeypatch.setattr(backends, "_device_answers", {"": ""})
    monkeypatch.setattr(backends, "MISSING", {"triton": "", "cuda": "", "cpu": ""})
    monkeypatch.setattr(backends, "OPERATIONS", {})


def test_triton_is_preferred_and_cuda_taken_where_it_is_absent(monkeypatch):
    op = OPS["layer_norm_fwd"]

    def taken(wish="auto"):
        return getattr(implementation(op.name, op.kernels, wish, "cuda"), "__module__", None)

    for name in ("triton", "cuda"):
        monkeypatch.setitem(backends.DEVICES, name, ("cuda",))
    monkeypatch.setattr(backends, "INTERPRETING", True)  # a launcher is as it is
    monkeypatch.setattr(backends, "_device_answers", {"": ""})
    monkeypatch.setattr(backends, "MISSING", {"triton": "", "cuda": "", "cpu": ""})
    assert taken() == "pyflash.kernels.norm.layer_norm"
    monkeypatch.setitem(backends.MISSING, "triton", "triton is not installed")
    if backends.CUDA_ON_HOST and not backends._why_no_cuda():
        assert taken() == "pyflash.ops.norm._cuda"
    backends._device_answers[""] = "cuda: pyflash._cuda was built for sm_90; a GPU here is sm_75"
    assert taken() is None  # torch's
    with pytest.raises(NotImplementedError, match="a GPU here is sm_75"):
        taken("cuda")


def test_what_the_preferred_backend_lacks_goes_to_the_next_by_its_name(both_on_a_gpu, monkeypatch):
    """An operator takes "auto" for the preferred backend that is there, whatever its arguments."""
    operation = backends.Operation("tested", dtypes={"triton": (torch.float32,), "cuda": FLOAT_DTYPES})
    single, double = (
        SimpleNamespace(is_cpu=False, device=torch.device("cuda"), dtype=dtype, numel=lambda: 4)
        for dtype in (torch.float32, torch.float64)
    )
    cuda_lacks = {"cuda": "cuda has depthwise convolution alone"}
    assert choose(operation, single) == choose(operation, single, lacking=cuda_lacks) == "auto"
    assert choose(operation, double) == choose(operation, single, lacking={"triton": "none"}) == "cuda"
    with pytest.warns(backends.FallbackWarning, match="triton does not serve float64"):
        assert choose(operation, double, lacking=cuda_lacks) is None
    monkeypatch.setitem(backends.MISSING, "triton", "triton is not installed")
    assert choose(operation, double) == choose(operation, single) == "auto"
    with pytest.warns(backends.FallbackWarning, match="triton is not installed"):
        assert choose(operation, single, lacking=cuda_lacks) is None
    with (
        pyflash.use_backend("cuda"),
        pytest.raises(NotImplementedError, match="tested: cuda has depthwise convolution alone"),
    ):
        choose(operation, single, lacking=cuda_lacks)


def test_auto_takes_the_first_that_the_rules_prefer_to_torch(both_on_a_gpu):
    """In the order that is asked for; the rules speak of each backend."""
    slower = {}
    served = {"triton": (torch.float32,), "cuda": (torch.float32,)}
    operation = backends.Operation("tested", dtypes=served, rules=lambda backend, *_: slower.get(backend, ""))
    x = SimpleNamespace(is_cpu=False, device=torch.device("cuda"), dtype=torch.float32, numel=lambda: 4)
    cuda_first = ("cuda", "triton", "cpu")
    assert choose(operation, x) == choose(operation, x, order=cuda_first, lacking={"cuda": "none"}) == "auto"
    assert choose(operation, x, order=cuda_first) == "cuda"
    slower["triton"] = "torch is faster than Triton"
    assert choose(operation, x) == choose(operation, x, order=cuda_first) == "cuda"
    assert choose(operation, x, lacking={"cuda": "none"}) is None
    slower["cuda"] = "torch is faster than CUDA C++"
    backends.counts.clear()
    assert choose(operation, x) is None
    assert dict(backends.counts) == {("tested", "torch", "torch is faster than Triton"): 1}


def test_a_call_is_torchs_at_once_only_where_the_rules_prefer_it_to_both(both_on_a_gpu):
    slower = {}
    rules = SimpleNamespace(decide=lambda where, *_: slower.get(where.kernels, ""))
    served = {"triton": (torch.float32,), "cuda": (torch.float32,)}
    refused = Refused(backends.Operation("tested", dtypes=served, rules=rules), lambda training, x: 4)
    x = SimpleNamespace(is_cpu=False, is_cuda=True, device=torch.device("cuda"), dtype=torch.float32)
    assert refused._ask(x) == OURS
    slower["triton"] = "torch is faster than Triton"
    assert refused._ask(x) is None  # `choose` finds that CUDA C++ is faster
    slower["cuda"] = "torch is faster than CUDA C++"
    assert refused._ask(x) == ("tested", "torch", "torch is faster than Triton")


@on_host
def test_what_the_module_is_handed_is_counted_and_named():
    from pyflash import _cuda_host

    for problem, words in (
        ((0, 0, 0, 0, 0.0, 0.0), r"_cuda_host.activation_fwd: problem ends after 6 fields, before dtype"),
        ((0, 0, 0, 99, 0.0, 0.0, 0), r"activation is 99, expected a number from 0 to"),
        ((0, 0, -1, 0, 0.0, 0.0, 0), r"n is -1, expected 0 or more"),
    ):
        with pytest.raises(TypeError, match=words):
            _cuda_host.activation_fwd(problem, 0, 0)
    with pytest.raises(ValueError, match="set_order: 'sideways', 'lazy'"):
        _cuda_host.set_order("sideways", "lazy")


@on_host
@pytest.mark.slow
def test_an_access_where_nothing_lies_is_an_error():
    """And not the end of the process."""
    code = """
from pyflash import _cuda_host
try:
    _cuda_host.activation_fwd((64, 64, 4, 0, 0.0, 0.0, 0), 0, 0)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pyflash._cuda_host.activation_fwd: " in done.stdout and "where nothing lies" in done.stdout, done


SAYS = """
import json, torch, pyflash, pyflash.functional as F
from pyflash.cli.explain import explain, info
try:
    with pyflash.use_backend("cuda"):
        F.relu(torch.randn(4))
except NotImplementedError as error:
    said = str(error)
else:
    said = "served"
cells = explain("cpu")["operations"]
print(json.dumps([info()["backends"]["cuda"], cells["gelu"]["cuda"], cells["linear"]["cuda"], said]))
"""


def said(**variables):
    done = subprocess.run([sys.executable, "-c", SAYS], capture_output=True, text=True, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_info_and_explain_tell_the_truth_without_a_gpu():
    """With the module for GPUs or without: nothing of it serves CPU tensors, and the reason is said."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    state, gelu, linear, error = said(PYFLASH_CUDA_HOST="0")
    reasons = "is not built", "was built from other sources", "build of torch has no CUDA", "there is no GPU"
    assert any(reason in state for reason in reasons)
    assert not gelu["served"] and gelu["reason"] and gelu["reason"] in error
    assert not linear["served"] and linear["reason"] == "cuda has no linear kernel"


@pytest.mark.parametrize(
    "versions, gpus, words",
    [
        ((0, 13000), [], "there is no NVIDIA driver"),
        ((12080, 13000), [], "the driver takes CUDA 12.8, and pyflash._cuda was built with 13.0"),
        ((13000, 13000), [], "there is no GPU"),
        ((13000, 13000), [(7, 5)], "pyflash._cuda was built for sm_80, sm_90; a GPU here is sm_75"),
        ((13000, 13000), [(9, 0)], ""),
    ],
)
def test_info_and_explain_say_what_a_module_for_gpus_lacks(versions, gpus, words, monkeypatch):
    """The module is there; the driver, or the GPU, is not."""
    monkeypatch.setattr(backends, "CUDA_ON_HOST", False)
    monkeypatch.setitem(backends.MISSING, "cuda", "")
    monkeypatch.setitem(backends.DEVICES, "cuda", ("cuda",))
    monkeypatch.setattr(backends, "_device_answers", {})
    monkeypatch.setattr(backends, "cuda_module", lambda: SimpleNamespace(ARCHS="80 90", versions=lambda: versions))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i])
    state, cell = info()["backends"]["cuda"], explain("cuda")["operations"]["gelu"]["cuda"]
    assert state.startswith(words or "ready, built for sm_80, sm_90") and words in cell["reason"]
    assert bool(cell["served"]) == (not words)


@on_host
@pytest.mark.slow
def test_info_and_explain_tell_the_truth_on_the_host():
    state, gelu, linear, error = said(PYFLASH_CUDA_HOST="1")
    assert state.startswith("ready, on CPU tensors") and error == "served"
    assert gelu["served"] == ["float32", "float64", "bfloat16", "float16"] and not linear["served"]


@pytest.mark.slow
def test_the_module_for_gpus_loads_without_one():
    """Its runtime is linked statically; a launch says what is not there."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if find_spec("pyflash._cuda") is None:
        pytest.skip("pyflash._cuda is not built: make build ARCHS=90")
    code = """
from pyflash import _cuda
print(_cuda.ARCHS, _cuda.versions())
try:
    _cuda.activation_fwd((0, 0, 4, 0, 0.0, 0.0, 0), 0, 0)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "(0, 1" in done.stdout and "_cuda.activation_fwd: CUDA driver" in done.stdout, done


@pytest.mark.parametrize(
    "asked, in_place, wanted",
    [
        (None, True, ([], True, False)),
        (None, False, (["all"], False, False)),
        ("none", True, ([], False, True)),
        ("90", True, (["90"], False, True)),
        ("host 80;sm_90", False, (["80", "90"], True, True)),
    ],
)
def test_what_of_cuda_a_build_makes(asked, in_place, wanted, monkeypatch):
    monkeypatch.delenv("PYFLASH_CUDA_ARCHS", raising=False)
    if asked is not None:
        monkeypatch.setenv("PYFLASH_CUDA_ARCHS", asked)
    assert build().wanted_of_cuda(in_place) == wanted


def test_an_architecture_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("PYFLASH_CUDA_ARCHS", "hopper")
    with pytest.raises(ValueError, match="PYFLASH_CUDA_ARCHS: hopper; expected numbers"):
        build().wanted_of_cuda(True)


def test_both_modules_are_stamped_with_what_they_are_bound_by(monkeypatch):
    monkeypatch.chdir(ROOT)
    native, wanted = build(), f'-DPF_CONTRACT="{contract.contract(folders=contract.CUDA)}"'
    for archs in ((), ("80", "90")):
        stamped = [path.name for _, path, flags in native.cuda_sources(archs) if wanted in flags]
        assert stamped == ["module.cpp"]
    flags = next(flags for _, path, flags in native.cuda_sources(("80", "90")) if path.suffix == ".cu")
    assert [f for f in flags if "gencode" in f] == [
        f"-gencode=arch=compute_{arch},code={code}"
        for arch, code in (("80", "[sm_80]"), ("90", "[sm_90]"), ("90", "compute_90"))
    ]
    # One PTX for a generation, also where its first member is not asked for.
    assert native.code_for(["86", "89", "120"]) == [
        "-gencode=arch=compute_80,code=[sm_86,sm_89]", "-gencode=arch=compute_120,code=[sm_120]",
    ]  # fmt: skip


def test_kernels_include_what_lies_below_them():
    """The facade and core, and of CUDA nothing else."""
    for path in sorted(ROOT.glob("csrc/cuda/*/*")):
        if path.parent.name == "host":
            continue
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                name = line.split()[1]
                below = (path.parent / name.strip('"')).resolve()
                if name.startswith('"'):
                    assert below.parent.name in ("core", "common", "cuda", path.parent.name), f"{path}: {line}"
                else:
                    assert name == "<type_traits>", f"{path}: {line}"
        assert not {"__shared__", "<<<", "asm", "__CUDA_ARCH__"} & set(path.read_text().replace("(", " ").split())


@pytest.mark.slow
def test_nvcc_makes_of_them_what_the_table_says():
    """Registers, shared memory, and no spills, for sm_90."""
    nvcc = cuda_kernels.compiler()
    if nvcc is None:
        pytest.skip("no nvcc")
    found, committed = cuda_kernels.table(nvcc, ["90"]), json.loads(cuda_kernels.TABLE.read_text())
    kernels = {
        f"{family} {name}": row for family, rows in found["kernels"]["sm_90"].items() for name, row in rows.items()
    }
    assert kernels and not [name for name, row in kernels.items() if row[2]]
    assert max(row[0] for row in kernels.values()) <= 255
    if found["nvcc"] == committed["nvcc"]:
        assert found["kernels"]["sm_90"] == committed["kernels"]["sm_90"], "python tools/cuda_kernels.py"


# Of 255 registers and what lies in shared memory already: two of a thread, written and read once a step.
SPILLS = {("sm_120", "Backward<bf16, Lstm>"): 16, ("sm_120", "Backward<f16, Lstm>"): 16}


def test_the_table_of_what_ptxas_made_is_whole_and_free_of_spills():
    committed = json.loads(cuda_kernels.TABLE.read_text())
    assert set(committed["kernels"]) == {f"sm_{arch}" for arch in cuda_kernels.ARCHS}
    families = {path.parent.name for path in cuda_kernels.sources()}
    for arch, found in committed["kernels"].items():
        assert set(found) == families and all(found.values()), arch
        spilled = {(arch, name): row[2] for rows in found.values() for name, row in rows.items() if row[2]}
        assert spilled == {key: size for key, size in SPILLS.items() if key[0] == arch}


# Kernels that multiply, how many, and what each is made of. Weights and states of a recurrent layer lie in shared memory as a
# warp's registers take them: there is nothing for ldmatrix, and no copy that would wait.
MULTIPLY = [
    ("attention/kernels.cu", r"(Forward|DecodePart)<", 18, ("HMMA", "LDSM", "LDGSTS")),
    ("attention/backward.cu", r"(Query|Key|Mask)Gradient<", 34, ("HMMA", "LDSM", "LDGSTS")),
    ("recurrent/kernels.cu", r"(Forward|Backward)<(bf16|f16|tf32),", 27, ("HMMA",)),
]


@pytest.mark.slow
@pytest.mark.parametrize("source, kernels, count, wanted", MULTIPLY)
def test_products_are_made_of_the_instructions_that_they_were_written_for(source, kernels, count, wanted):
    """Tensor cores, loads of whole matrices, copies that need no register: in every kernel that multiplies, and in no other."""
    nvcc = cuda_kernels.compiler()
    if nvcc is None or cuda_kernels.disassembler() is None:
        pytest.skip("no nvcc, or no nvdisasm")
    found = cuda_kernels.instructions(nvcc, ROOT / "csrc/cuda" / source, "90")
    multiply = {name: counts for name, counts in found.items() if re.match(kernels, name)}
    assert len(multiply) == count
    for name, counts in multiply.items():
        assert {word for word in cuda_kernels.INSTRUCTIONS if counts[word]} == set(wanted), (name, counts)
    assert not any(found[name]["HMMA"] for name in found.keys() - multiply.keys())
