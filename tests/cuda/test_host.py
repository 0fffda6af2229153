"""CUDA C++ on the CPU (csrc/cuda/host): kernels that are right come out right in every order, and each planted mistake is
named. No GPU and no CUDA is needed; a compiler is."""

import fcntl
import hashlib
import re
import shutil
import subprocess
from functools import lru_cache
from itertools import product
from pathlib import Path

import pytest

from tests.frame.test_native_build import build
from tools import sanitize

pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[2]
HOST = sorted((ROOT / "csrc/cuda/host").glob("*.cpp"))
SOURCES = [*sorted((ROOT / "csrc/cuda").rglob("*.*")), *sorted(Path(__file__).parent.glob("*.*"))]
SCHEDULES = "forward", "reverse", "depth_first", "reverse_depth_first", "random:1", "random:2"
RIGHT = (
    "row_sums", "product", "product/float16", "product/transposed", "product/tf32", "rotate", "pass_on", "votes", "launch",
)  # fmt: skip

# How the kernels are compiled, and how the host. Plain: 0xfe in what a kernel leaves uninitialised.
LANES = {"plain": (["-ftrivial-auto-var-init=pattern"], ["-ftrivial-auto-var-init=pattern"]), **build().SANITIZERS}


def program(lane: str) -> Path:
    """The cases, compiled once for a state of the sources, whichever worker comes first."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    kernels, host = LANES[lane]
    read = b"".join(path.read_bytes() for path in SOURCES if path.is_file())
    state = hashlib.sha256(read + repr(LANES).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "cuda-host" / state
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / lane
    with open(folder / f"{lane}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            flags = [compiler, "-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
            objects = []
            for source, own in [(Path(__file__).parent / "cases.cpp", kernels), *((path, host) for path in HOST)]:
                objects.append(folder / f"{lane}-{source.stem}.o")
                subprocess.run([*flags, *own, "-c", source, "-o", objects[-1]], check=True)
            subprocess.run([compiler, *kernels, *objects, "-o", folder / f"{lane}.part"], check=True)
            (folder / f"{lane}.part").rename(made)
    return made


COPIES = "lazy", "eager"


@lru_cache
def said(case: str, lane: str = "plain") -> dict[tuple[str, str], str]:
    """What the program prints for each schedule and each time of cp.async, all in one process."""
    orders = list(product(SCHEDULES, COPIES))
    how = sanitize.LANES.get(lane, sanitize.Lane((), {}))
    command = [*how.prefix, program(lane), case, *(word for order in orders for word in order)]
    environment = {"PATH": "/usr/bin:/bin", **how.options}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    lines = done.stdout.splitlines()
    if lane != "plain":  # a sanitizer may end it
        return dict(zip(orders, lines)) | {("", ""): done.stderr}
    assert not done.stderr and len(lines) == len(orders), done
    return dict(zip(orders, lines))


def is_right(case: str, lane: str) -> bool:
    """In every order, and nothing else is said."""
    lines = said(case, lane)
    return len(lines) - (lane != "plain") == len(SCHEDULES) * len(COPIES) and set(lines.values()) <= {"right", ""}


@pytest.mark.parametrize("case", RIGHT)
def test_right_kernels_are_right_in_every_order(case):
    assert is_right(case, "plain"), said(case)


def test_numbers_of_16_bits():
    assert is_right("numbers", "plain")


# What stops, in every order, and words of what is said.
STOPS = [
    ("row_sums/other_barrier", r"another barrier than that of thread \("),
    ("row_sums/leaves_early", r"has left the kernel \(thread \(37, 0, 0\)"),
    ("row_sums/skips_shuffle", "lanes of a warp diverged|deadlock, nobody can go on: .*__shfl_xor_sync"),
    ("row_sums/outside_of_mask", "lane 0 reads of lane 16, which is outside of the mask 0000ffff"),
    ("row_sums/only_half_arrives", "lanes of a warp diverged"),
    ("row_sums/past_shared", "an access 16 bytes behind the start of partial, which has 16"),
    ("row_sums/past_global", "an access 32 bytes behind the start of sums, which has 24"),
    ("row_sums/before_global", "an access -4096 bytes behind the start of sums"),
    ("row_sums/beside_global", "wrong: a write beside sums"),
    ("row_sums/much_shared", "52016 bytes of shared arrays, of at most 49152"),
    ("row_sums/runs_down_the_stack", "the stack of 131072 bytes is full"),
    ("product/other_layout", "wrong: element 0"),
    ("product/misaligned", "which are not aligned to 16 bytes"),
    ("rotate/not_cooperative", "livelock, what they look for is never written"),
    ("rotate/no_grid_barrier", "wrong: element"),
    ("pass_on/lost_flag", "livelock, what they look for is never written"),
    ("launch/no_blocks", "a grid of 0 x 1 x 1 blocks"),
    ("launch/threads", "1056 threads a block, of 1 to 1024"),
    ("launch/bounds", "launch bounds of 512 threads and 8 blocks"),
    ("launch/shared", "233472 bytes of dynamic shared memory, of 232448"),
    ("launch/cooperative", "a cooperative launch of 16384 blocks, of 2112 that are resident at once"),
]


@pytest.mark.parametrize("case, words", STOPS)
def test_mistakes_are_named(case, words):
    for order, text in said(case).items():
        assert re.search(words, text), (order, text)


def test_a_sentence_names_the_kernel_the_thread_and_the_line():
    text = said("row_sums/other_barrier")["forward", "lazy"]
    assert "RowSums" in text and "of block (0, 0, 0), __syncthreads (" in text and "kernels.h:" in text


# What comes out right in some orders, and the orders that show it.
SHOWN = [
    ("row_sums/no_barrier", "forward", "lazy"),
    ("product/weak_wait", "forward", "lazy"),
    ("product/no_barrier_behind", "depth_first", "eager"),
    ("row_sums/no_second_barrier", "reverse_depth_first", "lazy"),
    ("pass_on/no_wait", "forward", "lazy"),
]


@pytest.mark.parametrize("case, schedule, copies", SHOWN)
def test_orders_show_what_is_not_waited_for(case, schedule, copies):
    assert said(case)[schedule, copies].startswith("wrong: element")
    assert "right" in said(case).values()  # which is why one order is not enough


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["address", "thread"])
@pytest.mark.parametrize("case", RIGHT)
def test_sanitizers_find_nothing_in_right_kernels(case, lane):
    assert is_right(case, lane), said(case, lane)


# What is said of the case that it is a mistake of.
SANITIZED = [
    ("row_sums/past_shared", "address", "runtime error: index 4 out of bounds"),
    ("row_sums/past_global", "address", "AddressSanitizer: heap-buffer-overflow"),
    ("row_sums/beside_global", "address", "AddressSanitizer: heap-buffer-overflow"),
    ("row_sums/no_barrier", "thread", "ThreadSanitizer: data race"),
    ("row_sums/no_second_barrier", "thread", "ThreadSanitizer: data race"),
    ("product/no_barrier_behind", "thread", "ThreadSanitizer: data race"),
    ("product/transposed/no_barrier", "thread", "ThreadSanitizer: data race"),
    ("rotate/no_grid_barrier", "thread", "ThreadSanitizer: data race"),
    ("pass_on/no_wait", "thread", "ThreadSanitizer: data race"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case, lane, words", SANITIZED)
def test_sanitizers_find_mistakes(case, lane, words):
    text = said(case, lane)["", ""]
    assert words in text and "kernels.h:" in text


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_nvcc_takes_the_same_kernels(arch, tmp_path):
    """The facade's other half; spills would be warnings, and those errors."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    flags = [
        "-std=c++17",
        "-O3",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v,-warn-spills",
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
    ]
    command = [nvcc, *flags, "-c", Path(__file__).parent / "kernels.cu", "-o", tmp_path / "kernels.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    assert text.count("0 bytes spill stores, 0 bytes spill loads") == text.count("Compiling entry function") == 8
