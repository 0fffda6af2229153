"""The benchmark machinery: what it refuses to time, and what it discards. Nothing is timed here."""

import pytest
import torch

from benchmarks import harness, sampling
from benchmarks.check import Reference, Wrong, comparable
from benchmarks.harness import Contender, Effort
from benchmarks.operation import MODES, PROVIDERS, Case, Operation, Provider, load
from benchmarks.rows import Row
from benchmarks.sampling import Sample
from tests.frame.benchmark_helpers import FEW, HERE, Numel, doubling, outcome


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


@pytest.mark.parametrize("terms", [1, 4096])
def test_a_sum_of_many_terms_may_have_their_roundings_in_float64(terms):
    """And none of fewer terms, nor an error that no order makes."""
    operation = Operation(
        name="sum",
        cases=(),
        inputs=lambda case: (torch.rand(4096),),
        torch=lambda case: lambda x: x.sum()[None],
        pyflash=lambda case: lambda x: x.sum()[None] * (1 + 2.0**-47),  # 32 ulp
        flops=lambda case, mode: 0.0,
        bytes=lambda case, mode: 0.0,
        terms=lambda case: terms,
    )
    reference = Reference(operation, Case("4096", None, ("forward",), dtype="float64"), "forward", "cpu")
    ours, off = reference.bind(operation.pyflash(None)), reference.bind(lambda x: x.sum()[None] * (1 + 1e-12))
    if terms > 1:
        reference.check(ours)
    else:
        with pytest.raises(Wrong):
            reference.check(ours)
    with pytest.raises(Wrong):
        reference.check(off)


@pytest.mark.parametrize("name", ["layer_norm", "batch_norm", "instance_norm", "normalize"])
def test_norms_in_float64_are_right(name):
    operation = load(name)
    case = next(case for case in operation.cases if case.quick)
    reference = Reference(operation, case.as_dtype("float64"), "training", "cpu")
    provider = PROVIDERS["pyflash:cpu"]
    with provider.scope():
        reference.check(reference.bind(reference.build(lambda case: provider.build(operation, case))))


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


def test_every_case_of_torch_compile_is_compiled(monkeypatch):
    """Their functions have one code, and torch recompiles a code eight times."""
    from torch._dynamo.testing import CompileCounter

    counter, compile_by = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_by(function, backend=counter, dynamic=False))
    operation, case = doubling(None)
    for _ in range(12):
        PROVIDERS["torch.compile"].build(operation, case)(torch.ones(3))
    assert counter.frame_count == 12
