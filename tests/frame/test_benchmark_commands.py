"""What the benchmark files declare, what is written and read again, and the command line."""

import dataclasses
import json
from itertools import product

import pytest

from benchmarks import FAMILIES, OPERATIONS, harness, machine, plot, rows, table
from benchmarks.__main__ import main
from benchmarks.operation import MODES, load, select
from benchmarks.rows import Row
from tests.frame.benchmark_helpers import FEW, HERE

# Declarations.


@pytest.mark.parametrize("name", OPERATIONS)
def test_declarations(name):
    operation = load(name)
    assert operation.name == name
    assert any(case.quick for case in operation.cases)
    keys = [(case.name, case.dtype) for case in operation.cases]
    assert len(set(keys)) == len(keys)
    for case in operation.cases:
        assert case.modes and set(case.modes) <= set(MODES)
        if name == "models":  # counted by running them: see below
            continue
        for mode in case.modes:
            work = operation.work(case, mode)
            assert (work is None) == (mode == "double-backward" or case.name == "import")
            assert work is None or (work.flops >= 0 and work.exps >= 0 and work.flops + work.bytes > 0)


def test_the_flops_of_a_whole_model_are_those_of_its_products():
    """BERT's layer at width 768 and 128 tokens: projections, feed-forward, and attention, which torch's counter leaves out."""
    pytest.importorskip("transformers")
    operation = load("models")
    case = next(case for case in operation.cases if case.name == "BERT B1")
    layer = 2 * 128 * (4 * 768 * 768 + 2 * 768 * 3072) + 4 * 128 * 128 * 768
    assert operation.work(case, "forward").flops == 2 * layer
    assert operation.work(dataclasses.replace(case, modes=("training",)), "training").flops == pytest.approx(
        3 * 2 * layer,
        rel=0.02,  # of the first layer's input nobody asks a gradient; attention's backward has 2.5 times as many
    )


def test_selection():
    everything = select([])
    grid = {(case.shape.cell, case.shape.length, case.shape.batch, case.shape.hidden, case.shape.packed)
            for _, case, mode in select(["rnn"], full=True, mode="training")
            if case.shape.layers == 1 and case.dtype == "float32"}  # fmt: skip
    every = product(("LSTM", "GRU", "RNN"), (1, 32, 128), (1, 8, 32, 64), (64, 256, 512, 1024), (False,))
    assert grid >= set(every) and ("GRU", 32, 64, 1024, True) in grid
    assert len(select([], full=True)) > 300 + len(everything)
    assert len(select(["rnn"], full=True)) > 2 * len(select(["rnn"]))
    assert {"linear", "activation", "layer_norm", "attention", "rnn"} <= {
        operation.name for operation, _, mode in everything if mode == "double-backward"
    }
    quick = select([], quick=True)
    assert {operation.name for operation, _, _ in quick} == set(OPERATIONS)
    assert len(quick) < len(everything)
    assert all(mode == "backward" for _, _, mode in select(["attention"], mode="backward"))
    assert all("decode" in case.name for _, case, _ in select(["attention"], only="DECODE"))


def test_another_dtype_takes_every_case_once():
    rows = select(["attention"], dtype="bfloat16", mode="forward")
    names = [case.name for _, case, _ in rows]
    assert len(set(names)) == len(names)
    assert {case.dtype for _, case, _ in rows} == {"bfloat16"}


# Files and the command line.


def test_a_family_is_all_of_its_operations(monkeypatch):
    """`run norm pool`, and `embedding`, which is both; each operation once."""
    asked = []
    monkeypatch.setattr("benchmarks.__main__.select", lambda names, **filters: asked.extend(names))
    assert main(["run", "embedding", "pool", "softmax", "max_pool"]) == 2  # nothing was selected
    assert asked == [*FAMILIES["embedding"], *FAMILIES["pool"], "softmax"]
    assert {"embedding", "embedding_bag"} < set(asked) and set(FAMILIES["norm"]) < set(OPERATIONS)


def some_rows() -> list[Row]:
    quick = {"model": "a model", "median": 1e-3, "q25": 9e-4, "q75": 2e-3, "clean": 5, "samples": 6, "share": 0.5,
             "limit": "FLOPs", "flops_per_s": 1e12, "bytes_per_s": 1e9}  # fmt: skip
    return [
        Row("linear", "64", "forward", "float32", "torch", ratio=1.0, **quick),
        Row("linear", "64", "forward", "float32", "pyflash", ratio=2.5, torch_median=2.5e-3, **quick),
        Row("linear", "64", "forward", "float32", "pyflash:cpu", status="wrong", note="max error 1"),
    ]


def test_json_round_trip(tmp_path):
    path = tmp_path / "rows.json"
    rows.save(path, some_rows(), HERE)
    found, machines = rows.read(path)
    assert found == some_rows()
    assert machines == [HERE] * 3
    assert {"device", "cpu", "isa", "threads", "torch", "pyflash", "commit", "date"} <= set(
        json.loads(path.read_text())[0]["machine"]
    )
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "3", '{"a": 1}', "[1]", "[{}]", '[{"machine": {}}]'])
def test_corrupt_json_is_one_line(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="not a benchmark result") as caught:
        rows.read(path)
    assert "\n" not in str(caught.value)


def test_table():
    text = table.block(some_rows())
    assert "2.50x" in text and "1000 GF/s" in text and "50% FLOPs" in text
    assert "wrong: max error 1" in text
    assert "1 of 1 rows faster" in table.summary(some_rows())
    assert "wrong: linear, 64" in table.summary(some_rows())
    assert "forward, float32" in table.block(some_rows()[:1])


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert plot.plot(some_rows(), tmp_path / "bars.png", "title")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert not plot.plot(some_rows()[:1], tmp_path / "none.png", "title")


def test_list(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in OPERATIONS)
    assert "forward, training" in out and "pyflash:cpu" in out


@pytest.mark.parametrize(
    ("arguments", "exists"),
    [
        (["run", "atention"], "attention"),
        (["run", "--provider", "trch"], "pyflash:cpu"),
        (["run", "--device", "tpu"], "cpu"),
        (["run", "--only", "no such case"], "list"),
        (["run", "--mode", "sideways"], "double-backward"),
        (["run", "--dtype", "float8"], "bfloat16"),
        (["run", "--json", "nowhere/rows.json"], "no folder"),
        (["run", "--json", "/"], "name a file"),
        (["run", "--json", "/proc/rows.json"], "name a file"),
        (["run", "--png", "bars.bmp"], ".svg"),
        (["compare", "/", "/"], "not a benchmark result"),
        (["inspect", "no such kernel"], "sm80/attention"),
        (["inspect", "--jobs", "0"], "at least 1"),
        (["compare", "nowhere.json", "nowhere.json"], "not a benchmark result"),
        (["report", "nowhere.json"], "not a benchmark result"),
        (["bench"], "inspect"),
    ],
)
def test_bad_arguments_are_one_line_saying_what_exists(arguments, exists, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert exists in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_run_writes_every_finished_row(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "describe", lambda *_: HERE)
    monkeypatch.setattr(harness, "QUICK", FEW)
    path = tmp_path / "rows.json"
    status = main(["run", "linear", "--quick", "--only", "tiny", "--provider", "torch", "--json", str(path)])
    found, _ = rows.read(path)
    assert (status, [row.provider for row in found]) == (0, ["torch"])
    assert "tiny 8x16x16" in capsys.readouterr().out


def test_an_interrupted_run_keeps_its_finished_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "describe", lambda *_: HERE)
    monkeypatch.setattr(harness, "QUICK", FEW)
    run_case, cases = harness.run_case, []

    def second_never_ends(operation, case, *arguments, **options):
        cases.append(case.name)
        if len(cases) == 2:
            raise KeyboardInterrupt
        return run_case(operation, case, *arguments, **options)

    monkeypatch.setattr(harness, "run_case", second_never_ends)
    path = tmp_path / "rows.json"
    assert main(["run", "activation", "--quick", "--only", "tiny", "--provider", "torch", "--json", str(path)]) == 130
    found, _ = rows.read(path)
    assert [row.case for row in found] == cases[:1] and len(cases) == 2
    captured = capsys.readouterr()
    assert "finished rows are kept" in captured.err and cases[0] in captured.out
