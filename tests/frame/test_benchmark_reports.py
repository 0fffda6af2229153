"""Runs compared, drawn and reported: what is flagged, what is not, and that the page is made of the committed results."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import OPERATIONS, aot, compare, harness, known, machine, overview, report, rows, sampling
from benchmarks.__main__ import main
from benchmarks.operation import load, module_of
from benchmarks.rows import Row
from pyflash.auto import processor
from pyflash.ops.core import backends
from tests.frame.benchmark_helpers import HERE

ROOT = Path(report.__file__).resolve().parent.parent


def measured(generator, slowdown=1.0, rounds=31, noise=0.05, torchs=1.5) -> list[Row]:
    """torch's row and ours, 1.5 times as fast but for the slow-down, on a machine that wavers."""
    drift = 1 + 0.1 * torch.rand(rounds, generator=generator, dtype=torch.float64)

    def taken(seconds):
        wavering = 1 + noise * torch.randn(rounds, generator=generator, dtype=torch.float64)
        return [sampling.Sample(value, True) for value in (seconds * drift * wavering).tolist()]

    samples = {"torch": taken(torchs), "pyflash": taken(slowdown)}
    found = [Row("op", "case", "forward", "float32", name) for name in samples]
    for row in found:
        harness.fill_times(row, samples[row.provider])
    harness.fill_ratios(found, samples)
    return found


def verdict(old: list[Row], new: list[Row]) -> str:
    (change,) = compare.changes(old, new)
    return change.verdict


def test_a_slow_down_of_15_percent_is_flagged_and_its_absence_is_not():
    generator = torch.Generator().manual_seed(0)
    tries = 200
    pairs = [(measured(generator), measured(generator, 1.15), measured(generator)) for _ in range(tries)]
    flagged = [verdict(old, slow) == "slower" for old, slow, _ in pairs]
    alarms = [verdict(old, same) != "same" for old, _, same in pairs]
    assert sum(flagged) >= 0.9 * tries
    assert sum(alarms) <= 0.02 * tries
    assert [verdict(slow, old) == "faster" for old, slow, _ in pairs].count(True) >= 0.9 * tries


def test_neither_a_slow_torch_nor_a_slow_machine_is_a_change_of_ours():
    generator = torch.Generator().manual_seed(0)
    others = [
        dataclasses.replace(row, case=case, provider="torch") for case in "abcd" for row in measured(generator)[:1]
    ]

    def slower(rows, factor):
        times = {name: factor * getattr(row, name) for row in rows for name in ("median", "q25", "q75")}
        return [dataclasses.replace(row, **times) for row in rows]

    old = measured(generator)
    slow_torch = measured(generator, torchs=2.0)
    assert slow_torch[1].ratio_low > 1.2 * old[1].ratio_high
    assert verdict(old + others, slow_torch + others) == "same"
    assert verdict(old, slow_torch) == "same"  # nothing else to tell the machine's pace from
    slow_machine = slower(measured(generator)[:1], 1.5) + slower(measured(generator)[1:], 1.5)
    assert verdict(old + others, slow_machine + slower(others, 1.5)) == "same"
    slow_kernel = measured(generator, 1.3)
    assert verdict(old + others, slow_kernel + others) == "slower"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({"ratio": 2.0}, {"status": "wrong"}, "broken"),
        ({"status": "error"}, {"ratio": 2.0}, "mended"),
        ({"status": "wrong"}, {"status": "wrong"}, "same"),
        ({"ratio": 2.0}, {"status": "noisy"}, "noisy"),
        (
            {"ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1},
            {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.1},
            "slower",
        ),
        ({"ratio": 2.0}, {"ratio": 1.0}, "noisy"),
        (
            {"ratio": 2.0, "ratio_low": 0.9, "ratio_high": 4.4},
            {"ratio": 1.0, "ratio_low": 0.95, "ratio_high": 1.1},
            "same",
        ),
        (
            {"ratio": 1.00, "ratio_low": 1.0, "ratio_high": 1.0},
            {"ratio": 1.05, "ratio_low": 1.04, "ratio_high": 1.06},
            "same",
        ),
    ],
)
def test_verdicts(before, after, verdict):
    old, new = (Row("op", "case", "forward", "float32", "pyflash", **timed(values)) for values in (before, after))
    assert compare.Change(old, new).verdict == verdict


def timed(values: dict) -> dict:
    """With the times of a row of that ratio, beside a torch that takes a second."""
    if "ratio" not in values:
        return values
    seconds = 1 / values["ratio"]
    return {"median": seconds, "q25": 0.99 * seconds, "q75": 1.01 * seconds, "clean": 25} | values


def write(path, machine=HERE, **values):
    found = [Row("linear", "64", "forward", "float32", "torch", **timed({"ratio": 1.0}))]
    interval = {"ratio_low": 0.98 * values["ratio"], "ratio_high": 1.02 * values["ratio"]}
    found.append(Row("linear", "64", "forward", "float32", "pyflash", **interval, **timed(values)))
    rows.save(path, found, machine)
    return str(path)


def test_compare_exits_with_1_on_a_regression(tmp_path, capsys):
    old, new = write(tmp_path / "old.json", ratio=2.0), write(tmp_path / "new.json", ratio=1.5)
    assert main(["compare", old, old]) == 0
    assert main(["compare", new, old]) == 0
    assert main(["compare", old, new]) == 1
    assert "slower  linear, 64, forward, float32, pyflash: 2.00x -> 1.50x of torch (-25%)" in capsys.readouterr().out


def test_compare_says_what_else_differs(tmp_path, capsys):
    old = write(tmp_path / "old.json", ratio=2.0)
    new = write(tmp_path / "new.json", dataclasses.replace(HERE, torch="3", threads=4), ratio=2.0)
    assert main(["compare", old, new]) == 0
    error = capsys.readouterr().err
    assert "torch: 2 and 3" in error and "2 threads and a processor, avx512, 4 threads" in error
    assert "measured" not in error
    new = write(tmp_path / "new.json", dataclasses.replace(HERE, bandwidth=3e9), ratio=2.0)
    assert main(["compare", old, new]) == 0
    assert "measured copy GB/s: 10 and 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["compare", "{}", "{}"], ["plot", "{}"], ["report", "{}"]])
@pytest.mark.parametrize(("text", "says"), [("[{", "not a benchmark result"), ("[]", "no row")])
def test_a_corrupt_or_empty_file_is_one_line(command, text, says, tmp_path, capsys):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert main([part.format(path) for part in command]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize(
    ("change", "exists"),
    [
        ({"ratio": "two"}, "ratio is 'two', not float or None"),
        ({"operation": None}, "operation is None"),
        ({"machine": {**vars(HERE), "peak_flops": 3}}, "peak_flops is 3"),
        ({"machine": "a machine"}, "not a benchmark result"),
        ({"operation": "convolution"}, "there are attention, "),
    ],
)
def test_a_file_of_another_shape_is_one_line(change, exists, tmp_path, capsys):
    path = Path(write(tmp_path / "rows.json", ratio=2.0))
    path.write_text(json.dumps([row | change for row in json.loads(path.read_text())]))
    assert main(["report", str(path)]) == 2
    captured = capsys.readouterr()
    assert exists in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_results_that_cannot_be_written_are_one_line(tmp_path, capsys):
    path = write(tmp_path / "rows.json", ratio=2.0)
    for command in (["plot", path, "--png", "bars.bmp"], ["report", path, "--output", str(tmp_path)]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("benchmarks: ") and captured.err.count("\n") == 1 and not captured.out
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rows.json"]


def test_nothing_in_common(tmp_path, capsys):
    old = write(tmp_path / "old.json", ratio=2.0)
    elsewhere = dataclasses.replace(HERE, torch="3")
    rows.save(tmp_path / "other.json", [Row("dropout", "1M", "forward", "float32", "pyflash", ratio=2.0)], elsewhere)
    assert main(["compare", old, str(tmp_path / "other.json")]) == 2
    error = capsys.readouterr().err
    assert "no row in common" in error and error.count("\n") == 1


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["plot", write(tmp_path / "rows.json", ratio=2.0)]) == 0
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_puts_losses_first(tmp_path, capsys):
    measured = {"median": 1e-3, "q25": 9e-4, "q75": 2e-3, "flops_per_s": 1e12, "bytes_per_s": 1e9, "share": 0.5}
    assert main(["report", write(tmp_path / "rows.json", ratio=0.8, **measured)]) == 0
    text = capsys.readouterr().out
    assert text.index("- linear, 64, forward: 0.80x") < text.index("| 64 | forward | 1 ms")
    assert module_of("linear").STORY.limit in text and "Gaps:" in text
    assert "asked" not in text and "| share of the limit |" in text


def test_a_reason_that_holds_on_one_processor_is_given_for_no_other():
    row = Row("linear", "64", "forward", "bfloat16", "pyflash", ratio=0.5)
    gap = known.Gap("", "the matrix units", dtype="bfloat16", families=("amx",))
    assert gap.explains(row, dataclasses.replace(HERE, family="amx"))
    assert not gap.explains(row, dataclasses.replace(HERE, family="zen4"))
    assert dataclasses.replace(gap, families=()).explains(row, HERE)


def test_a_reason_is_of_calls_that_torch_serves_of_those_mostly_outside_or_of_slow_ones():
    row = Row(
        "linear", "64", "forward", "float32", "pyflash", ratio=1.2, median=1e-3, host_seconds=4e-4, served="torch"
    )
    for of, others in (
        ({"served": "torch"}, {"served": "cpu"}),
        ({"host": 0.4}, {"host_seconds": 3e-4}),
        ({"host": 0.4}, {"host_seconds": None}),
        ({"up_to": 1.3}, {"ratio": 1.4}),
    ):
        gap = known.Gap("", "why", **of)
        assert gap.explains(row, HERE) and not gap.explains(dataclasses.replace(row, **others), HERE)


def test_a_reason_is_of_results_before_a_day():
    row, gap = (
        Row("glu", "64", "double-backward", "float32", "pyflash", ratio=0.5),
        known.Gap("", "why", before="2026-11-28"),
    )
    assert gap.explains(row, dataclasses.replace(HERE, date="2026-11-27T23:59:59+00:00"))
    assert not gap.explains(row, dataclasses.replace(HERE, date="2026-11-28T00:00:00+00:00"))


def test_only_of_what_torch_computes_is_said_that_it_does():
    import pyflash.functional  # noqa: F401  # registers them

    said = [name for name in OPERATIONS if known.TWICE in module_of(name).STORY.gaps]
    assert said and all(
        backends.OPERATIONS[name].second_derivative != backends.IN_KERNELS
        for name in said
        if name in backends.OPERATIONS
    )


def test_a_row_far_from_the_limit_has_a_reason_or_says_that_nobody_looked(tmp_path, capsys):
    """Of a case with several reasons each names its modes."""
    path, measured = tmp_path / "rows.json", {"median": 1e-3, "ratio": 2.0, "share": 0.69}
    short = [
        Row("softmax", "softmax 4096x4096", mode, "float32", "pyflash", **measured) for mode in ("forward", "backward")
    ]
    short += [Row("softmax", "softmax 9", "forward", "float32", "pyflash", **measured)]
    near = Row("softmax", "softmax 10", "forward", "float32", "pyflash", **measured | {"share": 0.7})
    zen = dataclasses.replace(HERE, family="zen5")
    rows.save(path, [short[0], dataclasses.replace(short[1], served="torch"), short[2], near], zen)
    assert main(["report", str(path)]) == 0
    text = capsys.readouterr().out
    assert "\n- softmax 9: not looked into." in text and text.count("softmax 10") == 1
    assert "\n- softmax 4096x4096 (forward): the output's pages" in text
    assert "\n- softmax 4096x4096 (backward): torch's own kernel" in text


def test_every_reason_is_of_a_known_processor():
    named = {family for name in OPERATIONS for gap in module_of(name).STORY.gaps for family in gap.families}
    assert named and named <= set(machine.FAMILIES) and set(machine.FAMILIES) <= set(processor.FAMILIES)


def test_every_operation_has_its_story():
    assert all(isinstance(module_of(name).STORY, known.Story) for name in OPERATIONS)


def test_the_page_is_made_of_the_committed_results():
    results = [(path, *rows.read(path)) for path in report.committed()]
    assert results
    assert report.page(results, ROOT / "docs") == (ROOT / "docs" / "performance.md").read_text()


# Peers.


def test_a_peer_that_is_absent_or_refuses_is_a_row():
    operation = load("attention")
    case = operation.cases[0]
    small = dataclasses.replace(case, shape=dataclasses.replace(case.shape, heads=1, queries=16, dim=8))
    dropping = dataclasses.replace(small, shape=dataclasses.replace(small.shape, dropout=0.1))
    few = harness.Effort(clean=1, seconds=0.0)
    status = {}
    for case, name in ((small, "torch:math"), (small, "flash-attn"), (dropping, "flex_attention")):
        peer = next(peer for peer in operation.peers if peer.name == name)
        status[name] = harness.run_case(operation, case, "forward", [peer], HERE, effort=few)[0].status
    assert status.pop("torch:math") in ("ok", "noisy")
    assert set(status.values()) == {"unsupported"}


def attention_stand_in(scale=1.0):
    """As other libraries take it: [batch, length, heads, head_dim]."""

    def attention(q, k, v, *, causal=False, **options):
        assert not any(options.values())
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return scale * torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)

    return attention


class LowerTriangularMask:
    pass


def memory_efficient(q, k, v, attn_bias, p):
    return attention_stand_in()(q, k, v, causal=isinstance(attn_bias, LowerTriangularMask), p=p)


class LigerLayerNormFunction:
    @staticmethod
    def apply(x, weight, bias, eps):
        return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)


# (provider, the module it imports with what it takes from there, status)
STAND_INS = [
    ("flash-attn", "flash_attn", {"flash_attn_func": attention_stand_in()}, "ok"),
    ("flash-attn", "flash_attn", {"flash_attn_func": attention_stand_in(1.01)}, "wrong"),
    ("flash-attn", "flash_attn", {}, "unsupported"),
    (
        "xformers",
        "xformers.ops",
        {"LowerTriangularMask": LowerTriangularMask, "memory_efficient_attention": memory_efficient},
        "ok",
    ),
    ("liger", "liger_kernel.ops.layer_norm", {"LigerLayerNormFunction": LigerLayerNormFunction}, "ok"),
]


@pytest.mark.parametrize(("name", "module", "members", "status"), STAND_INS, ids=[f"{s[0]}-{s[3]}" for s in STAND_INS])
@pytest.mark.parametrize("mode", ["forward", "training"])
def test_a_peer_that_is_there_is_checked_and_timed(name, module, members, status, mode, monkeypatch):
    """With a module of the peer's name and signature in its place: of the peers themselves none runs without a GPU."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    vars(sys.modules[module]).update(members)
    operation = load("layer_norm" if name == "liger" else "attention")
    peer = next(peer for peer in operation.peers if peer.name == name)
    sizes = {"rows": 8, "cols": 32} if name == "liger" else {"heads": 2, "queries": 16, "dim": 8, "causal": True}
    case = operation.cases[0]
    case = dataclasses.replace(case, shape=dataclasses.replace(case.shape, **sizes))
    row = harness.run_case(operation, case, mode, [peer], HERE, effort=harness.Effort(clean=1, seconds=0.0))[0]
    assert row.status.replace("noisy", "ok") == status, row.note


# What the Triton kernels compile to.

ROW = {"registers": 128, "spill_bytes": 0, "blocks": 2, "HMMA": 0, "HGMMA": 4, "UTCHMMA": 0, "TF32": 0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"registers": 100, "blocks": 3}, ""),
        ({"spill_bytes": 16}, "spills 16 bytes"),
        ({"blocks": 1, "registers": 200}, "1 blocks a multiprocessor, 2 before"),
        ({"HGMMA": 0}, "no tensor-core instruction left"),
        ({"TF32": 3}, "TF32"),
    ],
)
def test_what_is_worse(change, words):
    found = aot.worse(ROW, ROW | change)
    assert (words in found[0]) if words else not found


@pytest.mark.slow
def test_a_planted_spill_is_seen():
    """Accumulators of 128 x 128 on one warp do not fit into its registers."""
    pytest.importorskip("triton")
    program = """
import json
from benchmarks import aot
from pyflash.kernels import tuning
tuning._FWD["sm80"] = [(64, tuning._tile(128, 64, 1, 1))]
print(json.dumps(aot.compile_case("sm80/attention/bfloat16/64/full")["attention_fwd"]))
"""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    planted = json.loads(done.stdout.splitlines()[-1])
    committed = json.loads(aot.TABLE.read_text())["rows"]["sm80/attention/bfloat16/64/full/attention_fwd"]
    assert planted["spill_bytes"] > 0 == committed["spill_bytes"]
    assert any("spills" in loss for loss in aot.worse(committed, planted))


# README's picture and table.


def test_readme_is_made_of_the_committed_results():
    results = [(path, *rows.read(path)) for path in report.committed()]
    text = overview.README.read_text()
    assert overview.written_into(text, overview.markdown(results)) == text


def test_every_row_that_readme_shows_is_a_row_of_the_suite():
    for shown in overview.SHOWN:
        cases = {(case.name, case.dtype): case for case in load(shown.operation).cases}
        assert shown.mode in cases[shown.case, shown.dtype].modes


def result(name: str, family: str, **values) -> tuple:
    here = dataclasses.replace(HERE, family=family)
    row = Row("linear", "4096x256x1024", "forward", "float32", "pyflash", **timed(values))
    return report.RESULTS / name, [row], [here]


def test_readme_takes_the_newest_row_and_invents_none(tmp_path):
    new, old = result("b.json", "zen5", ratio=1.5), result("a.json", "zen4", ratio=1.2, share=0.5, limit="FLOPs")
    text = overview.markdown([new, old])
    assert "| Linear | 4096 rows, 256 to 1024 | 1.50 (Zen 5) | – | – |" in text and "a.json" not in text
    text = overview.markdown([result("c.json", "amx", ratio=0.9, served="torch"), old])
    assert "| Linear | 4096 rows, 256 to 1024 | 1.20 (Zen 4) | 0.90* | 50% FLOPs |" in text
    assert text.count("\n| ") == 2  # of the rows that no result has, none


def test_the_overview_is_written_between_its_marks(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    readme, picture = tmp_path / "README.md", tmp_path / "overview.png"
    readme.write_text(f"before\n{overview.BEGIN}\nold\n{overview.END}\nafter\n")
    assert main(["overview", "--readme", str(readme), "--png", str(picture)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text and "| what |" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    readme.write_text("no marks")
    assert main(["overview", "--readme", str(readme), "--png", str(picture)]) == 2
    assert "to write between" in capsys.readouterr().err and readme.read_text() == "no marks"
