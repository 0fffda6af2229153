"""The benchmark machinery: what it refuses, what it discards, what it writes. Nothing is timed here."""

import dataclasses
import json
from dataclasses import dataclass
from itertools import product

import pytest
import torch

from benchmarks import OPERATIONS, harness, limits, machine, overhead, plot, rows, sampling, table
from benchmarks.__main__ import main
from benchmarks.check import Bound, Reference, Wrong, comparable
from benchmarks.harness import Contender, Effort
from benchmarks.limits import Work
from benchmarks.operation import MODES, PROVIDERS, Case, Operation, Provider, load, select
from benchmarks.rows import Row
from benchmarks.sampling import Sample
from pyflash.auto import processor

HERE = machine.Machine(
    device="cpu", cpu="a processor", isa="avx512", threads=2, python="3", torch="2", pyflash="0", commit="abc",
    date="2026-01-01", clean_samples="run-queue delay", peak_flops={"float32": 1e12}, bandwidth=1e10,
)  # fmt: skip
FEW = Effort(clean=1, seconds=0.0)


@dataclass(frozen=True)
class Numel:
    numel: int


def doubling(ours, *, shape=Numel(64), **settings) -> tuple[Operation, Case]:
    """An operation whose truth is 2 * x, done our way."""
    case = Case("64", shape, ("forward", "training"), **settings)
    operation = Operation(
        name="doubling",
        cases=(case,),
        inputs=lambda case: (torch.randn(case.shape.numel),),
        torch=lambda case: lambda x: 2 * x,
        pyflash=lambda case: ours,
        flops=lambda case, mode: 1e6,
        bytes=lambda case, mode: 2 * case.shape.numel * case.itemsize,
    )
    return operation, case


def outcome(ours, mode="forward", **settings) -> Row:
    operation, case = doubling(ours, **settings)
    providers = [PROVIDERS["torch"], PROVIDERS["pyflash"]]
    return harness.run_case(operation, case, mode, providers, HERE, effort=FEW)[1]


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        return 1.9 * dy


class WrongSecond(torch.autograd.Function):
    """2 * x whose gradient is right and depends on x all the same."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return 2 * dy + (x - x.detach())


def one_hole(x):
    y = 2 * x
    y[7] = float("nan")
    return y


# What may be timed.


@pytest.mark.parametrize("mode", MODES)
def test_a_right_result_is_timed(mode):
    row = outcome(lambda x: x + x, mode)
    assert row.status in ("ok", "noisy")
    assert row.samples >= harness.MIN_CLEAN
    assert row.median > 0
    assert row.max_error <= row.allowed_error


WRONG = [
    ("off by one part in ten thousand", lambda x: 2.0002 * x, "forward"),
    ("a NaN in one place", one_hole, "forward"),
    ("shape", lambda x: (2 * x)[None], "forward"),
    ("one output too many", lambda x: (2 * x, x), "forward"),
    ("gradient", WrongGradient.apply, "training"),
    ("gradient", WrongGradient.apply, "backward"),
    ("gradient", WrongGradient.apply, "double-backward"),
    ("second derivative", WrongSecond.apply, "double-backward"),
]


@pytest.mark.parametrize(("why", "ours", "mode"), WRONG, ids=[f"{why}-{mode}" for why, _, mode in WRONG])
def test_a_wrong_result_is_refused(why, ours, mode):
    row = outcome(ours, mode)
    assert row.status == "wrong"
    assert row.median is None and row.ratio is None and row.samples == 0


def test_a_wrong_gradient_does_not_spoil_the_forward_row():
    assert outcome(WrongGradient.apply, "forward").status in ("ok", "noisy")


def raising(error):
    def ours(x):
        raise error

    return ours


FAILURES = [
    (NotImplementedError("head_dim is 320\nand more"), "unsupported", "head_dim is 320"),
    (ImportError("no kernel"), "unsupported", "no kernel"),
    (torch.OutOfMemoryError("too much"), "out of memory", "too much"),
    (ValueError("what"), "error", "ValueError: what"),
    (RuntimeError(), "error", "RuntimeError: RuntimeError"),
]


@pytest.mark.parametrize(("error", "status", "note"), FAILURES, ids=[type(f[0]).__name__ for f in FAILURES])
def test_a_failure_is_a_row(error, status, note):
    row = outcome(raising(error))
    assert (row.status, row.note) == (status, note)


def test_a_failing_baseline_leaves_rows_without_times():
    operation, case = doubling(lambda x: 2 * x)
    broken = Operation(**{**vars(operation), "torch": lambda case: raising(ValueError("what"))})
    rows = harness.run_case(broken, case, "forward", list(PROVIDERS.values())[:3], HERE, effort=FEW)
    assert [row.status for row in rows] == ["error"] * 3


def test_errors_are_measured_on_the_numbers_the_kernel_sees():
    """float64 works on inputs already rounded to bfloat16, else no bfloat16 kernel could pass."""
    operation, case = doubling(lambda x: x + x, dtype="bfloat16")
    reference = Reference(operation, case, "training", "cpu")
    assert reference.torch_errors == [(0.0, largest) for _, largest in reference.torch_errors]


# Random operations.


def dropout_row(ours, mode="training") -> Row:
    dropout = load("dropout")
    broken = Operation(**{**vars(dropout), "pyflash": lambda case: ours})
    case = next(case for case in dropout.cases if case.name == "64K elements")
    return harness.run_case(broken, case, mode, [PROVIDERS["torch"], PROVIDERS["pyflash"]], HERE, effort=FEW)[1]


def test_another_generator_is_a_right_dropout():
    def ours(x):
        generator = torch.Generator().manual_seed(torch.randint(1 << 40, ()).item())
        return x * (torch.rand(x.shape, generator=generator) >= 0.1) / 0.9

    assert dropout_row(ours).status in ("ok", "noisy")


@pytest.mark.parametrize("rate", [0.0, 0.12])
def test_a_wrong_dropout_rate_is_refused(rate):
    row = dropout_row(lambda x: torch.nn.functional.dropout(x, rate) * (1 - rate) / 0.9)
    assert row.status == "wrong" and "asked for 0.9" in row.note


def test_a_gradient_with_another_mask_is_refused():
    class OtherMask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.nn.functional.dropout(x, 0.1)

        @staticmethod
        def backward(ctx, dy):
            return torch.nn.functional.dropout(dy, 0.1)

    assert dropout_row(OtherMask.apply).status == "wrong"


def attention_row(ours) -> Row:
    from benchmarks.operations import attention

    case = Case("small", attention.Shape(1, 2, 24, 16, causal=True, dropout=0.25), {"training": None})
    broken = Operation(**{**vars(attention.OPERATION), "pyflash": lambda case: ours})
    return harness.run_case(broken, case, "training", [PROVIDERS["torch"], PROVIDERS["pyflash"]], HERE, effort=FEW)[1]


def test_attention_with_dropout_is_held_to_its_own_mask():
    def attention(q, k, v, normalise=True):
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, float("-inf"))
        kept = torch.rand(scores.shape) >= 0.25
        p = scores.softmax(-1) * kept
        return (p / 0.75 if normalise else p) @ v

    assert attention_row(attention).status in ("ok", "noisy")
    assert attention_row(lambda q, k, v: attention(q, k, v, normalise=False)).status == "wrong"


def test_module_dropout_is_off_for_the_check_and_on_again_after_it():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3)
    places = [(layer.self_attn, "dropout"), (layer.dropout, "p"), (layer.dropout2, "p")]
    with comparable(layer, "forward") as random:
        assert random and [getattr(*place) for place in places] == [0.0] * 3
    assert [getattr(*place) for place in places] == [0.3] * 3
    with comparable(torch.nn.Linear(2, 2), "training") as random:
        assert not random


def test_gradients_are_compared_without_the_jump_of_relu():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16)
    with comparable(layer, "forward"):
        assert layer.activation is torch.nn.functional.relu
    with comparable(layer, "training"):
        assert layer.activation is torch.nn.functional.gelu
    assert layer.activation is torch.nn.functional.relu


def test_a_dropout_that_does_nothing_is_refused():
    class Lazy(torch.nn.Dropout):
        def forward(self, x):
            return x

    case = Case("64", Numel(64), {"training": None})
    operation, _ = doubling(None)
    operation = Operation(**{**vars(operation), "torch": lambda case: torch.nn.Dropout(0.5)})
    reference = Reference(operation, case, "training", "cpu")
    with pytest.raises(Wrong, match="two seeds give one result"):
        reference.check(reference.bind(Lazy(0.5)))


# Clean samples.


@pytest.mark.parametrize(
    ("wall_ns", "waited", "clean"),
    [(1_000_000, 0, True), (1_000_000, 23_000, True), (1_000_000, 23_001, False), (1000, 3000, True)],
)
def test_a_sample_is_clean_when_nothing_waited(wall_ns, waited, clean):
    assert sampling.is_clean(wall_ns, waited) is clean


def test_waiting_is_summed_over_threads_that_come_and_go():
    before = {"1": 100, "2": 50, "gone": 900}
    assert sampling.waited_ns(before, {"1": 130, "2": 50, "new": 7}) == 37


def test_run_queue_delay_reads_this_process():
    assert all(delay >= 0 for delay in sampling.run_queue_delay().values())


def samples(*values, clean=True):
    return [Sample(value, clean) for value in values]


def test_statistics_are_of_clean_samples_only():
    row = Row("op", "case", "forward", "float32", "pyflash")
    harness.fill_times(row, samples(1, 2, 3, 4, 5) + samples(100, 200, clean=False))
    assert (row.status, row.q25, row.median, row.q75) == ("ok", 2, 3, 4)
    assert (row.clean, row.samples) == (5, 7)


def test_too_few_clean_samples_are_noise_and_neither_win_nor_loss():
    torchs, ours = (Row("op", "case", "forward", "float32", name) for name in ("torch", "pyflash"))
    taken = {"torch": samples(2, 2, 2, 2, 2), "pyflash": samples(1, 1, 1, 1) + samples(1, 1, clean=False)}
    harness.fill_times(torchs, taken["torch"])
    harness.fill_times(ours, taken["pyflash"])
    harness.fill_ratios([torchs, ours], taken)
    assert (ours.status, ours.ratio) == ("noisy", None)
    assert torchs.ratio == 1.0


def test_a_noisy_baseline_gives_no_ratios():
    torchs, ours = (Row("op", "case", "forward", "float32", name) for name in ("torch", "pyflash"))
    taken = {"torch": samples(2, 2, clean=False) + samples(2), "pyflash": samples(1, 1, 1, 1, 1)}
    harness.fill_times(torchs, taken["torch"])
    harness.fill_times(ours, taken["pyflash"])
    harness.fill_ratios([torchs, ours], taken)
    assert ours.ratio is None


def test_a_ratio_is_the_median_of_the_rounds_with_its_interval():
    torchs, ours = (Row("op", "case", "forward", "float32", name) for name in ("torch", "pyflash"))
    slow_for_a_while = [1, 1, 10, 10, 10, 1, 1]
    taken = {
        "torch": [Sample(2.0 * factor, True) for factor in slow_for_a_while],
        "pyflash": [Sample(1.0 * factor, True) for factor in slow_for_a_while],
    }
    for row in (torchs, ours):
        harness.fill_times(row, taken[row.provider])
    harness.fill_ratios([torchs, ours], taken)
    assert (ours.ratio, ours.ratio_low, ours.ratio_high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(("count", "ranks"), [(5, (1, 5)), (11, (3, 9)), (25, (8, 18)), (101, (41, 61))])
def test_the_interval_of_a_median_covers_it_nineteen_times_in_twenty(count, ranks):
    values = list(range(1, count + 1))
    low, high = sampling.median_interval([float(v) for v in values[::-1]])
    assert (low, high) == ranks
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, count, generator=generator).sort(1).values
    covered = (draws[:, ranks[0] - 1] <= 0.5) & (0.5 <= draws[:, ranks[1] - 1])
    assert covered.float().mean() > 0.9


def test_providers_alternate_and_are_sampled_alike():
    order = []
    contenders = [Contender(Provider(name, "torch"), lambda: None, "forward", (0, 0)) for name in "ab"]
    turns = iter("abbaabbaabbaabba")

    def sampler(call, repeats):
        order.append(next(turns))
        return Sample(1.0, clean=len(order) > 4)

    taken = harness.measure(contenders, sampler, Effort(clean=3, seconds=60.0))
    assert "".join(order) == "abbaabbaab"  # five rounds: the first two were not clean
    assert [len(of) for of in taken.values()] == [5, 5]


def test_more_samples_are_taken_only_while_they_are_missing():
    """Two providers of which one is seldom clean: `patience` is for the fifth clean sample, `seconds` for the rest."""
    contenders = [Contender(Provider(name, "torch"), lambda: None, "forward", (0, 0)) for name in "ab"]
    taken = harness.measure(contenders, lambda *_: Sample(1.0, True), Effort(clean=9, seconds=60.0))
    assert [len(of) for of in taken.values()] == [9, 9]
    taken = harness.measure(contenders, lambda *_: Sample(1.0, True), Effort(clean=9, seconds=0.0, patience=60.0))
    assert [len(of) for of in taken.values()] == [5, 5]
    taken = harness.measure(contenders, lambda *_: Sample(1.0, False), Effort(clean=9, seconds=0.0, patience=0.05))
    assert len(taken["a"]) == len(taken["b"]) >= harness.LAST_ROUNDS
    every_third = (clean for _ in range(99) for clean in (True, False, False))
    taken = harness.measure(
        contenders[:1], lambda *_: Sample(1.0, next(every_third)), Effort(clean=9, seconds=0.0, patience=60.0)
    )
    assert len(taken["a"]) == 13  # the fifth clean one


def test_moved_tensors_keep_their_values():
    case = next(case for case in load("linear").cases if case.quick)
    bound = Reference(load("linear"), case, "training", "cpu").bind(load("linear").torch(case))
    before, places = bound(), [tensor.data_ptr() for tensor in bound.inputs]
    bound.move()
    assert all(tensor.data_ptr() != place for tensor, place in zip(bound.inputs, places, strict=True))
    torch.testing.assert_close(bound(), before, rtol=0, atol=0)


def test_tensors_move_between_rounds():
    contender = Contender(Provider("a", "torch"), lambda: "first", "forward", (0, 0))
    places = iter(["second", "third"])
    contender.move = lambda: (lambda place: lambda: place)(next(places))
    calls = []
    harness.measure([contender], lambda call, _: Sample(1.0, bool(calls.append(call()) or 1)), Effort(9, 60.0))
    assert calls == ["first"] * 4 + ["second"] * 4 + ["third"]


# What a call costs besides.


def test_the_host_pays_for_what_is_not_in_the_core():
    import time

    core = pytest.importorskip("pyflash._cpu")
    function = core.isa

    def call(asleep_inside, asleep_outside):
        time.sleep(asleep_outside)
        core.isa(asleep_inside)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "isa", time.sleep)
        host = overhead.host_seconds(lambda: call(0.05, 0.01), "cpu", 3)
        assert 0.01 <= host < 0.05
        assert core.isa is time.sleep
    assert core.isa is function


def test_what_a_forward_keeps_is_counted_once_and_without_inputs():
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            own = torch.empty(1000)
            ctx.save_for_backward(x, weight.t(), own, own[:10], torch.empty(10))
            return x * weight

        @staticmethod
        def backward(ctx, dy):
            raise NotImplementedError

    x, weight = (torch.ones(4, 4, requires_grad=True) for _ in range(2))
    bound = Bound(Keeps.apply, (x, weight), "training", [x, weight])
    assert overhead.saved_bytes(bound) == 4 * 1010


def test_rows_say_what_is_kept_in_training_only():
    assert outcome(lambda x: 2 * x, "training").saved_bytes == 0
    assert outcome(lambda x: 2 * x, "forward").saved_bytes is None


# Limits.

PEAKS = dataclasses.replace(HERE, copies={"1000000": 4e11, "4000000": 1e11}, exps=1e9)


@pytest.mark.parametrize(
    ("work", "kind", "seconds", "why"),
    [
        (Work(1e12, 1e9), "FLOPs", 1.0, "the slower of the two"),
        (Work(1e9, 1e11), "memory", 10.0, "the slower of the two"),
        (Work(0, 1e8), "memory", 1e-2, "past the caches"),
        (Work(0, 5e6), "cache", 5e-5, "the rate of the largest copy that is no larger"),
        (Work(0, 2e6), "cache", 5e-6, "the rate of the largest copy that is no larger"),
        (Work(1e9, 1e6, 1e8), "exp", 0.1, "exp is the slowest"),
        (Work(1e12, 1e6, 1e8), "FLOPs", 1.0, "exp is not the slowest"),
    ],
)
def test_the_slowest_kind_of_work_is_the_limit(work, kind, seconds, why):
    found = limits.limit(work, PEAKS, "float32")
    assert (found.kind, found.seconds) == (kind, pytest.approx(seconds)), why


@pytest.mark.parametrize(
    ("work", "machine", "dtype", "why"),
    [
        (None, PEAKS, "float32", "nobody counted"),
        (Work(1e12, 1e9), PEAKS, "float64", "no such peak was measured"),
        (Work(1e3, 1e3), PEAKS, "float32", "a call takes longer"),
        (Work(0, 5e6), HERE, "float32", "in a cache that was not measured"),
        (Work(0, 0, 1e8), HERE, "float32", "exp was not measured"),
    ],
)
def test_without_a_measured_peak_there_is_no_limit(work, machine, dtype, why):
    assert limits.limit(work, machine, dtype) is None, why


def test_a_row_says_its_share_and_how_fast_the_limit_would_be():
    row = Row("op", "case", "forward", "float32", "pyflash", median=2e-3, ratio=1.5)
    limits.set_limit(row, Work(1e9, 1e6), HERE)
    assert (row.limit, row.share, row.limit_ratio) == ("FLOPs", 0.5, 3.0)
    assert (row.flops_per_s, row.bytes_per_s, row.exps_per_s) == (5e11, 5e8, 0)
    limits.set_limit(row, None, HERE)
    assert (row.limit, row.share, row.limit_ratio) == ("", None, None)


def test_older_files_are_read_and_get_the_limits_that_they_allow(tmp_path):
    """As they were written before: with what was asked, without limits, the processor's family in the name alone."""
    path = tmp_path / "2026-01-01-cpu-zen4.json"
    machine = {name: value for name, value in HERE.to_json().items() if name not in ("family", "copies", "exps")}
    common = {"operation": "linear", "mode": "forward", "dtype": "float32", "provider": "pyflash", "floor": 2.0,
              "extra_us": None, "median": 1e-3, "machine": machine}  # fmt: skip
    written = [
        common | {"case": "products", "flops_per_s": 5e11, "bytes_per_s": 1e9, "share": 0.5},
        common | {"case": "in cache", "flops_per_s": 0.0, "bytes_per_s": 2e10, "share": 2.0},
        common | {"case": "past memory's rate", "flops_per_s": 0.0, "bytes_per_s": 2e11, "share": 20.0},
        common | {"case": "a whole model", "flops_per_s": None, "bytes_per_s": None, "share": None},
    ]
    path.write_text(json.dumps(written))
    found, machines = rows.read(path)
    assert [(row.limit, row.share) for row in found] == [("FLOPs", 0.5), *[("", None)] * 3]
    assert machines[0].family == "zen4" and "a processor (Zen 4)" in machines[0].title
    rows.save(path, found, machines[0])
    assert rows.read(path)[0] == found


def test_peaks_are_measured():
    """Small: what they are, not how fast."""
    assert machine.exp_peak() > 1e6
    assert machine.copy_bandwidth("cpu", 1 << 20) > 1e6
    assert machine.family("cpu") in processor.FAMILIES


def test_a_limit_far_from_every_bar_does_not_make_them_small():
    near, far = (Row("op", name, "forward", "float32", "pyflash", ratio=3.0, share=share)
                 for name, share in (("near", 0.6), ("far", 0.01)))  # fmt: skip
    assert plot.bounds([near, far]) == (0.5, 5.0)


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
    assert len(select([], full=True)) > 2 * len(everything)
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
