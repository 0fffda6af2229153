"""`make gpu` without a GPU: the same command with the interpreter in place of the device, and its parts."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stand_in
import torch

pytest.importorskip("triton")
from pyflash.kernels import candidates, tuning
from tools.gpu import ROOT, environment, profile, steps, summary, tune
from tools.gpu.record import Recorder
from tools.gpu.workloads import KEYS

# Only pytest of these may be imported without asking: the rest is missing on a usual GPU image.
OPTIONAL = {"hypothesis", "xdist", "expecttest", "rich", "matplotlib"}


def gpu(*arguments, results, **settings):
    command = [sys.executable, "-m", "tools.gpu", "--device", "interpreter", "--results", str(results), *arguments]
    environ = os.environ | {"PYFLASH_NO_NATIVE": "1"}  # a test compiles nothing
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, **settings)


def page(results: Path) -> list[str]:
    (written,) = results.glob("*.md")
    return written.read_text().splitlines()


def test_the_tests_part(tmp_path):
    done = gpu("--part", "tests", "--op", "test_cast_rounds", "--workers", "0", results=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = page(tmp_path)
    assert lines[0].startswith("Left out: ")
    assert any(line.startswith("| kernels | tests | done |") for line in lines) and "1 passed" in lines


def test_a_failing_test_is_on_the_page(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_planted.py").write_text("def test_right(): pass\ndef test_wrong(): assert 1 == 2\n")
    environ = os.environ | {"PYFLASH_RECORD": str(tmp_path / "record")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tools.gpu.record",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    subprocess.run([*command, str(folder)], cwd=ROOT, env=environ, capture_output=True)
    lines = summary.tests(tmp_path / "record")
    assert "1 failed, 1 passed" in lines and any("test_wrong: assert 1 == 2" in line for line in lines)


def test_what_is_done_survives_being_stopped(tmp_path):
    command = [sys.executable, "-m", "tools.gpu", "--device", "interpreter", "--results", str(tmp_path)]
    command += ["--part", "tests", "--op", "elementary", "--workers", "0"]
    environ = os.environ | {"PYFLASH_NO_NATIVE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob("*.jsonl")) and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    text = "\n".join(page(tmp_path))
    assert "passed" in text and "stopped" in text and "not reached" in text


def test_a_step_keeps_to_its_time(tmp_path):
    here = environment.Environment("interpreter", variables=dict(os.environ))
    step = steps.Step("sleeps", "tests", ["-c", "import time; time.sleep(60)"])
    steps.run(step, here, 0.5, tmp_path / "record")
    assert step.status == "out of time" and step.seconds < 30


def test_unknown_device_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "tools.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("make gpu: torch sees no CUDA device")


def test_kernels_are_found_without_an_installation(tmp_path):
    """-S: no site-packages, so no editable installation; torch's folders are named instead."""
    site = environment.write_site()
    code = "import sitecustomize, importlib.util as u; print(u.find_spec('pyflash.kernels').origin)"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([site, *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "kernels" / "__init__.py"), done.stderr


def test_tests_import_nothing_that_may_be_missing():
    for path in sorted((ROOT / "tests").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = [name for name in names if name.split(".")[0] in OPTIONAL or "testing._internal" in name]
            assert not wrong, f"{path.name}: {wrong}; import it through property_tests or pytest.importorskip"


def test_the_plan_begins_with_the_kernels():
    here = environment.Environment("cuda", gpu="a GPU", arch="sm90")
    found = [
        (step.part, step.name) for step in steps.plan(here, ["tests", "bench", "tune"], [], Path("results"), "now")
    ]
    assert found[0] == ("tests", "kernels") and found[-1] == ("tests", "everything else")
    assert [part for part, _ in found[3:6]] == ["bench", "tune", "bench"]
    (benchmark,) = (step for step in steps.bench(here, ["linear"], Path("results"), "now") if "quick" in step.name)
    assert benchmark.command[:4] == ["-m", "benchmarks", "run", "linear"] and "cuda" in benchmark.command


# The device that stands in for one in the tests of the triton backend.


def test_the_stand_in_refuses_to_mix():
    with stand_in.device():
        x, y = torch.randn(3), torch.randn(3, device="cpu")
        assert x.is_cuda and x.device.type == "cuda" and (x + x).is_cuda and not x.cpu().is_cuda and y.cuda().is_cuda
        assert torch.equal((x * 2 + y.to(x.device)).cpu(), x.cpu() * 2 + y)
        with pytest.raises(RuntimeError, match="one device"):
            x + y


def test_the_stand_in_serves_the_triton_backend():
    environ = os.environ | {"PYFLASH_STAND_IN": "1", "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:xdist",
        "tests/test_linear.py",
        "-k",
        "test_triton_matches_float64",
    ]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


# Tuning.


@pytest.fixture
def tuner(tmp_path, monkeypatch):
    """The tuner on one small key whose calls are counted, with two candidates beside the row by hand."""
    if not tune.INTERPRETED:
        pytest.skip("for the interpreter")
    key = next(key for key in KEYS if key.name == "row_block")
    tried = []

    def make(small):
        y = torch.zeros(8)

        def call():
            config = tuning.row_block("interpreter", 1024)
            tried.append(config["num_warps"])
            if config["num_warps"] == 64:
                raise RuntimeError("out of resource: registers")
            y.fill_(2.0 if config["num_warps"] == 32 else 1.0)

        return call, [y]

    monkeypatch.setattr(tune, "BUILD", tmp_path)
    monkeypatch.setattr(tune, "KEYS", [tune.Key(key.name, key.shape, make, "layer_norm")])
    by_hand = tuning.row_block.rows("interpreter", 1024)
    # A wrong one, and one that takes more than there is.
    found = [dict(by_hand, num_warps=32), dict(by_hand, num_warps=64)]
    monkeypatch.setattr(candidates, "of", lambda *_, **__: found)
    return tmp_path / "table.json", by_hand, tried


def test_wrong_and_greedy_candidates_are_never_timed(tuner):
    path, by_hand, tried = tuner
    tune.work(path, [], None)
    table = json.loads(path.read_text())
    (row,) = table["keys"].values()
    assert row["config"] == by_hand and row["skipped"] == 2 and row["tried"] == 1
    assert tried.count(32) == 1 and tried.count(64) == 1
    assert not tuning.TRIAL
    bad = json.loads((path.parent / "tune-table.json").read_text())["bad"]["row_block/1024"]
    assert sorted(why.split(":")[0] for why in bad.values()) == ["RuntimeError", "Wrong"]


def test_a_search_goes_on_where_it_was(tuner, capsys):
    path, _, tried = tuner
    tune.work(path, [], None)
    tried.clear()
    tune.work(path, [], None)
    assert not tried and "measured already" in capsys.readouterr().out


def test_what_ended_the_process_is_not_tried_again(tuner):
    path, by_hand, tried = tuner
    tune.write(path.parent / "tune-table.json", {"trying": ["row_block/1024", str(dict(by_hand, num_warps=64))]})
    tune.work(path, [], None)
    assert 64 not in tried and 32 in tried


def test_every_key_runs_in_the_interpreter():
    if not tune.INTERPRETED:
        pytest.skip("for the interpreter")
    seen = set()
    for key in KEYS:
        if (key.name, key.operation) not in seen:
            seen.add((key.name, key.operation))
            trials = tune.Trials(key, "interpreter")
            trials.prepare(trials.by_hand)
            assert all(output.isfinite().all() for output in trials.expected)
    assert {name for name, _ in seen} == set(tuning.TUNABLE)
    assert len({key.text for key in KEYS}) == len(KEYS)


# Profiling.

RAW = '''==PROF== Connected
"ID","Kernel Name","sm__throughput.avg.pct_of_peak_sustained_elapsed","dram__throughput.avg.pct_of_peak_sustained_elapsed","sm__inst_executed_pipe_tensor_op_hmma.avg.pct_of_peak_sustained_active","sm__warps_active.avg.pct_of_peak_sustained_active","gpu__time_duration.sum","smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","smsp__average_warps_issue_stalled_wait_per_issue_active.ratio"
"","","%","%","%","%","us","inst","inst"
"0","_attention_fwd","71.5","12.25","68.1","24.9","1,234.5","3.0","1.0"
'''  # fmt: skip


def test_the_lines_that_matter():
    text = "\n".join(profile.lines_that_matter(*profile.read(RAW)))
    for line in ("_attention_fwd", "tensor cores' peak", "68.1 %", "bandwidth", "12.25 %", "1234 us"):
        assert line in text or (line == "1234 us" and "1235 us" in text)
    assert text.index("stalled: long scoreboard") < text.index("stalled: wait") and "75%" in text


@pytest.mark.parametrize(
    "output, why",
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "only root"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", "out of reach"),
        ("==WARNING== No kernels were profiled.", "no kernel of that name"),
        ("", "said nothing"),
    ],
)
def test_a_refusal_is_explained(output, why):
    assert profile.read(output) == ({}, {})
    assert why in profile.explain(output)


def test_a_half_written_line_is_no_line(tmp_path):
    (tmp_path / "record").write_text('{"test": "a", "outcome": "passed", "seconds": 1, "why": ""}\n{"test": "b", "outc')
    assert "1 passed" in summary.tests(tmp_path / "record")
    assert Recorder(tmp_path / "new").file.name.endswith("new")
