"""What stands beside a time: what a call costs besides its kernel, and the limit of the machine."""

import dataclasses
import json

import pytest
import torch

from benchmarks import limits, machine, overhead, plot, rows
from benchmarks.check import Bound
from benchmarks.limits import Work
from benchmarks.rows import Row
from pyflash.auto import processor
from tests.frame.benchmark_helpers import HERE, outcome

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
