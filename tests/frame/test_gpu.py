"""`make gpu` without a GPU: the same command with the interpreter in place of the device, and its parts."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import stand_in
import torch

pytest.importorskip("triton")
from benchmarks import OPERATIONS
from benchmarks.operation import load
from pyflash.kernels import candidates, tuning
from tools.gpu import ROOT, environment, profile, smoke, steps, summary, tune
from tools.gpu import __main__ as main
from tools.gpu.record import Recorder
from tools.gpu.workloads import KEYS

pytestmark = pytest.mark.host

# Only pytest of these may be imported without asking: the rest is missing on a usual GPU image.
OPTIONAL = {"hypothesis", "xdist", "expecttest", "rich", "matplotlib"}


def gpu(*arguments, results, **settings):
    command = [sys.executable, "-m", "tools.gpu", "--device", "interpreter", "--results", str(results), *arguments]
    environ = os.environ | {"PYFLASH_NO_NATIVE": "1"}  # a test compiles nothing
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, **settings)


def page(results: Path) -> list[str]:
    (written,) = results.glob("*.md")
    return written.read_text().splitlines()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_unknown_device_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, "-m", "tools.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("make gpu: torch sees no CUDA device")


@pytest.mark.slow
def test_kernels_are_found_without_an_installation(tmp_path):
    """-S: no site-packages, so no editable installation; torch's folders are named instead."""
    site = environment.write_site()
    code = "import sitecustomize, importlib.util as u; print(u.find_spec('pyflash.kernels').origin)"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([site, *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "kernels" / "__init__.py"), done.stderr


def test_tests_import_nothing_that_may_be_missing():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = [name for name in names if name.split(".")[0] in OPTIONAL or "testing._internal" in name]
            assert not wrong, f"{path.name}: {wrong}; import it through property_tests or pytest.importorskip"


def test_the_plan_begins_with_the_kernels():
    here = environment.Environment("cuda", gpu="a GPU", arch="sm90")
    planned = steps.plan(here, ["smoke", "tests", "bench", "tune"], [], Path("results"), "now")
    found = [(step.part, step.name) for step in planned]
    assert [name for _, name in found[:3]] == ["kernels not in the cache", "every launcher once", "kernels"]
    assert found[-1] == ("tests", "everything else")
    assert [part for part, _ in found if part != "smoke"][:5] == ["tests", "tests", "bench", "tune", "bench"]
    (benchmark,) = (step for step in steps.bench(here, ["linear"], Path("results"), "now") if "quick" in step.name)
    assert benchmark.command[:4] == ["-m", "benchmarks", "run", "linear"] and "cuda" in benchmark.command


# Every launcher once.


@pytest.mark.slow
def test_the_smoke_part(tmp_path):
    done = gpu("--part", "smoke", "--op", "dropout", results=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = summary.read_lines(next(tmp_path.glob("*-smoke.jsonl")))
    assert {row["case"].split(":")[0] for row in rows} == {"dropout"} and all(row["error"] < 1 for row in rows)
    assert any(line.startswith("## Every launcher once: ") and "0 not right" in line for line in page(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2  # few files come back from a lent machine


def test_every_operation_has_cases_at_a_gpus_size():
    for name in OPERATIONS:
        operation = load(name)
        if operation.outputs_only:  # a whole model launches what the others do
            continue
        assert operation.gpu, name
        labels = [(case.name, case.dtype) for case in operation.gpu]
        assert len(set(labels)) == len(labels)
    assert len(smoke.plan([], small=False)) > len(smoke.plan([], small=True)) > 50
    assert {work.operation.name for work in smoke.plan(["linear"], small=True)} == {"linear"}


def one_case(operation: str, mode: str, **changes) -> smoke.Work:
    work = next(work for work in smoke.plan([operation], small=True) if work.mode == mode)
    return replace(work, operation=replace(work.operation, **changes))


@pytest.mark.parametrize("mode", ["forward", "backward"])
def test_a_wrong_kernel_is_seen(mode):
    if not tune.INTERPRETED:
        pytest.skip("for the interpreter")
    right = smoke.measure(one_case("layer_norm", mode), "cpu")
    assert smoke.is_right(right) and 0 < right["error"] < 1

    def slightly_off(case):
        return lambda x, weight, bias: torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias) * 1.03

    wrong = smoke.measure(one_case("layer_norm", mode, pyflash=slightly_off), "cpu")
    assert wrong["error"] > 1 and not smoke.is_right(wrong)
    assert "<<< WRONG" in smoke.describe(wrong)
    none = smoke.measure(
        one_case("layer_norm", mode, pyflash=lambda case: lambda x, w, b: x * w * b * torch.nan), "cpu"
    )
    assert not smoke.is_right(none)  # NaN is above no limit


@pytest.mark.slow
def test_a_case_that_ends_the_process_costs_itself_only(tmp_path, monkeypatch):
    worker = """
import os, sys, time
from pathlib import Path
from tools.gpu import smoke
results = Path(sys.argv[1])
done = {row["case"] for row in smoke.read(results)}
for name in ("a", "b", "c", "d"):
    if name in done: continue
    smoke.trying(results).write_text(name)
    if name == "b": os._exit(smoke.DEVICE_ERROR)
    if name == "c": time.sleep(60)
    smoke.note(results, {"case": name, "error": 0.5})
"""
    results = tmp_path / "rows.jsonl"
    monkeypatch.setattr(smoke, "command", lambda options: [sys.executable, "-c", worker, str(options.results)])
    monkeypatch.setitem(smoke.PATIENCE, "cuda", 5.0)
    assert smoke.supervise(smoke.parser().parse_args(["--results", str(results)])) == 1
    rows = {row["case"]: row for row in smoke.read(results)}
    assert "failed" not in rows["a"] and "failed" not in rows["d"]
    assert rows["b"]["failed"] == "the process ended with 75" and rows["c"]["failed"] == "took more than 5 s"
    lines = "\n".join(summary.smoke(results))
    assert "4 cases, 2 not right" in lines and "- b: the process ended with 75" in lines


@pytest.mark.slow
def test_a_worker_whose_device_is_lost_is_replaced(tmp_path):
    """The first failure loses the device of its process; the tests that follow there run in another one."""
    pytest.importorskip("xdist")
    (tmp_path / "test_lost.py").write_text(
        "import os, pytest\nfrom tools.gpu import sticky\n"
        "sticky.answers = lambda: not hasattr(os, 'lost')\n"
        "@pytest.mark.parametrize('i', range(6))\n"
        "def test_on_device(i):\n    if i == 2: os.lost = True\n    assert not hasattr(os, 'lost')\n"
    )
    command = [sys.executable, "-m", "pytest", "-n", "1", "--max-worker-restart", "4", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    settings = dict(cwd=ROOT, capture_output=True, text=True)
    done = subprocess.run([*command, "-p", "tools.gpu.sticky"], **settings)
    assert "5 passed" in done.stdout and "test_on_device[2]" in done.stdout, done.stdout
    assert "4 failed, 2 passed" in subprocess.run(command, **settings).stdout


def test_results_and_the_tuned_table_lie_in_one_folder(tmp_path, monkeypatch):
    table = tmp_path / "kernels" / "sm90.json"
    table.parent.mkdir()
    table.write_text('{"keys": {}}')
    here = environment.Environment("cuda", gpu="a GPU", arch="sm90")
    monkeypatch.setattr(main, "prepare", lambda device: here)
    monkeypatch.setattr(steps, "tuned_table", lambda here, results: table)
    monkeypatch.setattr(steps, "plan", lambda *_: [])
    assert main.main(["--results", str(tmp_path / "r")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "r").iterdir()) == [".json", ".md"]


@pytest.mark.slow
def test_kernels_are_compiled_without_a_gpu(tmp_path):
    cache, archive = tmp_path / "cache", tmp_path / "cache.tar.xz"
    command = [sys.executable, "-m", "tools.gpu.compile", "dropout", "--jobs", "1", "--archive", str(archive)]
    environ = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0 and "2 kernels" in done.stdout and not done.stderr, done.stdout + done.stderr
    with tarfile.open(archive) as content:
        names = content.getnames()
    assert sum(name.endswith(".cubin") for name in names) == 2 and names[0] == str(cache.relative_to("/"))


def test_a_carried_cache_is_unpacked_once(tmp_path):
    cache = tmp_path / "cache"
    (cache / "kernel").mkdir(parents=True)
    (cache / "kernel" / "binary").write_text("cubin")
    archive = tmp_path / "cache.tar.xz"
    with tarfile.open(archive, "w:xz") as content:
        content.add(cache, arcname=str(cache.relative_to("/")))
    shutil.rmtree(cache)
    environment.unpack(archive, cache)
    assert (cache / "kernel" / "binary").read_text() == "cubin"
    (cache / "kernel" / "binary").write_text("newer")
    environment.unpack(archive, cache)
    assert (cache / "kernel" / "binary").read_text() == "newer"


# The device that stands in for one in the tests of the triton backend.


def test_the_stand_in_refuses_to_mix():
    with stand_in.device():
        x, y = torch.randn(3), torch.randn(3, device="cpu")
        assert x.is_cuda and x.device.type == "cuda" and (x + x).is_cuda and not x.cpu().is_cuda and y.cuda().is_cuda
        assert torch.equal((x * 2 + y.to(x.device)).cpu(), x.cpu() * 2 + y)
        with pytest.raises(RuntimeError, match="one device"):
            x + y


@pytest.mark.slow
def test_the_stand_in_serves_the_triton_backend():
    environ = os.environ | {"PYFLASH_STAND_IN": "1", "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:xdist",
        "tests/linear/test_linear.py",
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
    monkeypatch.setattr(tune, "KEYS", [tune.Key(key.name, key.shape, make, ("layer_norm",))])
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


@pytest.mark.slow
def test_every_key_runs_in_the_interpreter():
    if not tune.INTERPRETED:
        pytest.skip("for the interpreter")
    seen = set()
    for key in KEYS:
        if key.names not in seen:
            seen.add(key.names)
            trials = tune.Trials(key, "interpreter")
            trials.prepare(trials.by_hand)
            assert all(output.isfinite().all() for output in trials.expected)
    assert {names[-1] for names in seen} == set(tuning.TUNABLE)
    assert {"layer_norm", "rms_norm", "linear", "rnn", "attention"} <= {name for names in seen for name in names}
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
