"""The CPU core on both compilers."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
OMP = "int omp_get_thread_num(void);\nint omp_get_num_threads(void);\n"  # for a clang that comes without libomp


def build():
    """setup.py as a module: what is compiled, and how."""
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        spec.loader.exec_module(module)
        return module
    finally:
        os.chdir(before)


def clang():
    """A clang to call: that of the system, or of the package `ziglang`, which knows where its own headers are only when
    it is told."""
    if shutil.which("clang++"):
        return ["clang++"]
    ziglang = importlib.util.find_spec("ziglang")
    if ziglang is None:
        pytest.skip("neither clang++ nor the package ziglang is here")
    headers = (Path(ziglang.origin).parent / "lib/include", "/usr/include", "/usr/include/x86_64-linux-gnu")
    return [
        *(sys.executable, "-m", "ziglang", "clang", "-x", "c++", "--target=x86_64-linux-gnu", "-nostdinc"),
        *(f"-isystem{path}" for path in headers),
    ]


@pytest.mark.parametrize("isa", list(build().X86_FLAGS))
def test_clang_takes_every_instruction_set(isa, tmp_path):
    """Every template is instantiated, no code is made."""
    compiler, native = clang(), build()
    (tmp_path / "omp.h").write_text(OMP)
    flags = [
        "-std=c++17",
        "-fopenmp",
        *native.KERNEL_FLAGS,
        f"-DPF_ISA={isa}",
        *native.X86_FLAGS[isa],
        "-Werror",
        "-idirafter",
        str(tmp_path),
    ]
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{path}"\n' for path in sorted(ROOT.glob("csrc/cpu/*/*.cpp"))))
    done = subprocess.run([*compiler, *flags, "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_headers_define_nothing_twice(tmp_path):
    """Several families include them, for one instruction set: in clang a specialised constant is not local to its file."""
    compiler, native = clang(), build()
    if shutil.which("ld") is None:
        pytest.skip("no linker")
    (tmp_path / "omp.h").write_text(OMP)
    source = tmp_path / "headers.cpp"
    shared = ("simd/math.h", "simd/operand.h", "simd/philox.h", "gemm/gemm.h", "pointwise/activations.h")
    source.write_text("".join(f'#include "{ROOT / "csrc/cpu" / name}"\n' for name in shared))
    flags = ["-std=c++17", "-fopenmp", "-O0", "-w", "-DPF_ISA=avx512_bf16", *native.X86_FLAGS["avx512_bf16"]]
    objects = [str(tmp_path / f"{name}.o") for name in "ab"]
    for name in objects:
        subprocess.run([*compiler, *flags, "-idirafter", str(tmp_path), "-c", str(source), "-o", name], check=True)
    done = subprocess.run(["ld", "-r", *objects, "-o", str(tmp_path / "both.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_object_is_made_again_when_what_it_includes_changed(tmp_path):
    """By the compiler's own list: a header of one family concerns the objects of no other."""
    is_current = build().is_current
    source, header, target = tmp_path / "kernels.cpp", tmp_path / "tile.h", tmp_path / "kernels.o"
    for path in (source, header, target):
        path.write_text("")
    target.with_suffix(".d").write_text(f"{target}: {source} \\\n {header}\n")
    target.with_suffix(".command").write_text("g++ -O3")
    for path in (source, header):
        os.utime(path, (1, 1))
    assert is_current(target, "g++ -O3")
    assert not is_current(target, "g++ -O2")
    os.utime(header)
    os.utime(target, (2, 2))
    assert not is_current(target, "g++ -O3")
    header.unlink()
    assert not is_current(target, "g++ -O3")
    target.with_suffix(".d").unlink()
    assert not is_current(target, "g++ -O3")


def test_families_include_what_lies_below_them():
    """simd <- core <- gemm <- the families, which use each other only for products and for epilogues."""
    shared = {"simd": set(), "core": {"simd"}, "gemm": {"simd", "core"}}
    for path in sorted(ROOT.glob("csrc/cpu/*/*")):
        family = path.parent.name
        may = shared.get(family, {"simd", "core", "gemm", "linear", "pointwise"}) | {family, "common"}
        for name in re.findall(r'^#include "(.*)"', path.read_text(), re.MULTILINE):
            included = (path.parent / name).resolve()
            assert included.is_file(), f"{path} includes {name}"
            assert included.parent.name in may, f"{path} includes {name}"


# Attention of float32 alone, with constants that the test has changed.
DRIVER = """
#include "simd/vec.h"
#define for_dtype(dtype, ...) (__VA_ARGS__)(float{})
#include "attention/kernels.cpp"
#include <vector>

extern "C" void attention(const float* q, const float* k, const float* v, const float* mask, const float* dout, float* out,
                          float* lse, float* dq, float* dk, float* dv, float* dmask, int64_t H, int64_t L, int64_t S,
                          int64_t E) {
  auto dense = [&](int64_t rows, int64_t cols) { return Strides4{{H * rows * cols, rows * cols, cols, 1}}; };
  Attention p = {};
  p.q = q, p.k = k, p.v = v, p.mask = mask;
  p.q_stride = dense(L, E), p.k_stride = p.v_stride = dense(S, E), p.mask_stride = {{0, 0, S, 1}};
  p.B = 1, p.H = p.Hkv = H, p.L = L, p.S = S, p.E = p.Ev = E;
  p.window_left = p.window_right = -1, p.scale = 0.3, p.keep_scale = 1;
  int64_t bytes[2];
  for (int pass = 0; pass < 2; pass++)
    generic::attention::workspace({1, H, L, S, E, E, Dtype::f32, (AttentionPass)pass, 1, &bytes[pass]}, 1);
  std::vector<char> memory((bytes[0] > bytes[1] ? bytes[0] : bytes[1]) + 64);
  void* workspace = (void*)(((uintptr_t)memory.data() + 63) / 64 * 64);
  generic::attention::fwd({p, out, lse, nullptr, dense(L, E), workspace}, 1);
  AttentionBwd b = {};
  b.of = p, b.dout = dout, b.out = out, b.lse = lse, b.dq = dq, b.dk = dk, b.dv = dv, b.dmask = dmask;
  b.dout_stride = b.out_stride = b.dq_stride = dense(L, E), b.dk_stride = b.dv_stride = dense(S, E);
  b.dmask_size[0] = b.dmask_size[1] = 1, b.dmask_size[2] = L, b.dmask_size[3] = S;
  b.workspace = workspace;
  generic::attention::bwd(b, 1);
}
"""
CONSTANTS = [  # changes of csrc/cpu/attention, why
    ({}, "as they are"),
    ({"kTileRows = 4, kTileVectors = 2": "kTileRows = 2, kTileVectors = 4"}, "a wider register tile"),
    (
        {"kKeys = 128": "kKeys = 48", "kBwdKeys = 128": "kBwdKeys = 40", "kMaxDepth = 128": "kMaxDepth = 8"},
        "shorter blocks of keys and chains",
    ),
    ({"kChunk = 1024": "kChunk = 40", "kFewKeys = 512": "kFewKeys = 32", "kFewRows = 8": "kFewRows = 3"}, "decoding"),
]


def torchs(dtype, inputs, dout):
    q, k, v, mask = leaves = [t.to(dtype, copy=True).requires_grad_() for t in inputs]
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    return (result.detach(), *torch.autograd.grad(result, leaves, dout.to(dtype)))


@pytest.mark.parametrize("changes, why", CONSTANTS, ids=[row[1] for row in CONSTANTS])
@pytest.mark.slow
def test_attention_is_right_at_other_tile_sizes(changes, why, tmp_path):
    """What is tuned on the next processor must not be wrong silently; what it may be at all is a static_assert."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no compiler")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    missing = dict(changes)
    for path in (tmp_path / "csrc/cpu/attention").iterdir():
        text = path.read_text()
        for before in [before for before in missing if before in text]:
            text = text.replace(before, missing.pop(before))
        path.write_text(text)
    assert not missing, "constants that are no longer there"
    (tmp_path / "driver.cpp").write_text(DRIVER)
    flags = ["-std=c++17", "-O1", "-w", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-shared", "-DPF_ISA=generic"]
    done = subprocess.run(
        [compiler, *flags, "-DPF_VECTOR_BYTES=16", "-I", str(tmp_path / "csrc/cpu"), "driver.cpp", "-o", "driver.so"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    attention = ctypes.CDLL(str(tmp_path / "driver.so")).attention
    for length in (2, 37):  # few queries go another way
        heads, keys, dim = 2, 150, 20
        q, dout = torch.randn(2, 1, heads, length, dim)
        k, v = torch.randn(2, 1, heads, keys, dim)
        inputs = [q, k, v, torch.randn(length, keys)]
        out, lse, grads = torch.empty_like(q), torch.empty(heads, length), [torch.empty_like(t) for t in inputs]
        tensors = (*inputs, dout, out, lse, *grads)
        attention(
            *(ctypes.c_void_p(t.data_ptr()) for t in tensors), *map(ctypes.c_int64, (heads, length, keys, dim))
        )  # fmt: skip

        helpers.assert_error_within(
            (out, *grads),
            torchs(torch.float32, inputs, dout),
            torchs(torch.float64, inputs, dout),
            dout,
            factor=2,
            floor_ulp=4,
        )
