"""Packed weights that outlive a call: never used when a weight has changed, and kept only where they stay."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from helpers import use

import pyflash
import pyflash.nn
from pyflash.ops.core import backends
from pyflash.ops.core.packed_weights import PATIENCE, PackedWeights, bytes_of
from pyflash.ops.recurrent.stream import NOT_KEPT
from tests.linear.test_linear_cache import SURGERY, cache  # noqa: F401  a fixture

# ---- the store ----------------------------------------------------------------------------------------------------


class Packed:
    def __init__(self, nbytes):
        self.nbytes, self.used = nbytes, 0


class Visits:
    """Weights of `size` bytes each that are visited; counts what was packed."""

    def __init__(self, limit, weights, size=100):
        self.store, self.size = PackedWeights(limit), size
        self.weights = [torch.randn(4) for _ in range(weights)]
        self.packed = [0] * weights

    def visit(self, i):
        def make():
            self.packed[i] += 1
            return Packed(self.size)

        found = self.store.find((i,), (0,), [self.weights[i]], lambda: self.size, make)
        assert self.store.bytes <= self.store.limit
        return found is not None


def test_weights_visited_in_turn_are_packed_once_or_never():
    visits = Visits(limit=1000, weights=20)
    for _ in range(5 * PATIENCE):
        assert [visits.visit(i) for i in range(20)] == [True] * 10 + [False] * 10
    assert visits.packed == [1] * 10 + [0] * 10


def test_turns_that_differ_in_order_push_nothing_out():
    visits = Visits(limit=1000, weights=20)
    for _ in range(5 * PATIENCE):
        for i in torch.randperm(20).tolist():
            visits.visit(i)
    assert sum(visits.packed) == 10


def test_what_is_no_longer_used_gives_way():
    visits = Visits(limit=1000, weights=20)
    for i in range(10):
        assert visits.visit(i)
    found = [
        [visits.visit(i) for i in range(5, 15)] for _ in range(3 * PATIENCE)
    ]  # the first five are dropped from use
    assert found[0] == [True] * 5 + [False] * 5 and found[-1] == [True] * 10
    assert visits.packed == [1] * 15 + [0] * 5


def test_the_dead_make_room():
    visits = Visits(limit=1000, weights=20)
    for i in range(10):
        assert visits.visit(i)
    assert not visits.visit(10)
    visits.weights[3] = torch.randn(4)
    assert len(visits.store) == 9 and visits.visit(10)


def test_what_is_larger_than_the_limit_pushes_nothing_out():
    visits = Visits(limit=1000, weights=3)
    assert visits.visit(0)
    visits.size = 1001
    assert not any(visits.visit(1) for _ in range(3 * PATIENCE))
    assert len(visits.store) == 1


def test_a_changed_weight_is_packed_in_its_own_room():
    store, weight = PackedWeights(100), torch.randn(4)
    for state in range(3):
        assert store.find((0,), (state,), [weight], lambda: 100, lambda: Packed(100)) is not None
    assert len(store) == 1 and store.bytes == 100


def test_a_cleared_store_takes_others():
    visits = Visits(limit=1000, weights=20)
    for i in range(20):
        visits.visit(i)
    visits.store.clear()
    assert visits.store.bytes == 0
    assert [visits.visit(i) for i in range(19, -1, -1)] == [True] * 10 + [False] * 10


def test_threads_share_the_store():
    visits = Visits(limit=1000, weights=20)
    threads = [
        threading.Thread(target=lambda: [visits.visit(i) for _ in range(50) for i in range(20)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(visits.store) == 10 and visits.store.bytes == 1000


# ---- its limit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [("0", 0), ("1000000", 10**6), ("512MB", 512 * 10**6), ("1GB", 10**9), ("1GiB", 1 << 30), ("1.5 gib", 3 << 29),
     (" 64 KiB ", 1 << 16), ("7B", 7)],
)  # fmt: skip
def test_the_limit_is_read(text, expected):
    assert bytes_of("LIMIT", text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "1XB", "one", "1 G B"])
def test_a_limit_that_is_none_is_refused_by_name(text):
    with pytest.raises(ImportError, match=r"LIMIT is .* expected a number of bytes such as"):
        bytes_of("LIMIT", text)


STREAM = """
import torch, pyflash
from pyflash.ops.core import backends
from pyflash.ops.core.packed_weights import packed_weights
cells = [pyflash.nn.GRUCell(16, 32) for _ in range(4)]
x, h = torch.randn(128, 16), torch.randn(128, 32)  # so many rows that `auto` takes ours
with torch.no_grad():
    for _ in range(3):
        for cell in cells:
            torch.testing.assert_close(cell(x, h), torch.gru_cell(x, h, *cell.parameters()))
print(packed_weights.limit, len(packed_weights), *sorted(backend for _, backend, _ in backends.counts))
"""


@pytest.mark.parametrize(
    "limit, expected", [("1GiB", "1073741824 4 cpu"), ("50KB", "50000 2 cpu torch"), ("0", "0 0 torch")]
)
@pytest.mark.slow
def test_the_limit_of_the_environment(limit, expected):
    pytest.importorskip("pyflash._cpu")
    environment = {**os.environ, "PYFLASH_CACHE_BYTES": limit, "PYFLASH_BACKEND": "auto"}
    done = subprocess.run([sys.executable, "-c", STREAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected.split()


@pytest.mark.slow
def test_a_bad_limit_of_the_environment_says_so():
    environment = {**os.environ, "PYFLASH_CACHE_BYTES": "1XB"}
    done = subprocess.run([sys.executable, "-c", "import pyflash"], env=environment, capture_output=True, text=True)
    assert "ImportError: PYFLASH_CACHE_BYTES is '1XB', expected a number of bytes" in done.stderr


# ---- recurrent layers ---------------------------------------------------------------------------------------------


def kept(*weights):
    """What tells whether these are what they were, and from how many rows on it looks at every element."""
    native = pytest.importorskip("pyflash._cpu")
    places = [(w.data_ptr(), *w.shape) for w in weights]
    return native.RnnKept((1, 1, 8, 8, 8, 1, 0, False, 0), places, 64, 2)


@pytest.mark.parametrize("shape", [(8192, 1024), (1024, 8192), (2048, 2048), (250, 65), (3, 5000), (5000, 3)], ids=str)
def test_every_row_and_every_column_is_looked_at(shape):
    w = torch.randn(shape)
    other = torch.randn(7, 7)
    native = kept(other, w)
    assert native.is_current(1, 1) and native.is_current(64, 2)
    rows, columns = torch.randperm(shape[0])[:600].tolist(), torch.randperm(shape[1])[:600].tolist()
    for name, places in (("row", rows), ("column", columns)):
        for i in places:
            part = w[i] if name == "row" else w[:, i]
            before = part.clone()
            part.zero_()
            assert not native.is_current(1, 1), (name, i)
            part.copy_(before)
    assert native.is_current(1, 2) and native.is_current(64, 1)


@pytest.mark.parametrize("surgery", SURGERY)
def test_a_call_of_many_rows_sees_everything(surgery):
    w = torch.randn(1024, 500)
    native, before = kept(w), w.clone()
    for _ in range(200):
        SURGERY[surgery](w, int(torch.randint(1, 1024, ())), int(torch.randint(1, 460, ())))
        assert not native.is_current(64, 2)
        w.copy_(before)
    assert native.is_current(64, 1)


def test_runs_of_a_row_and_of_a_column_are_seen_at_once():
    w = torch.randn(1024, 2048)
    native = kept(w)
    for _ in range(300):
        r, c = int(torch.randint(1024 - 127, ())), int(torch.randint(1024, ()))
        for part in (w[r, c : c + 1024], w[r : r + 127, c]):
            part.neg_()
            assert not native.is_current(1, 1), (r, c, part.shape)
            part.neg_()
    assert native.is_current(1, 1)


def test_one_element_of_a_small_weight_is_seen_at_once():
    w = torch.randn(256, 64)
    native = kept(w)
    for _ in range(200):
        r, c = int(torch.randint(256, ())), int(torch.randint(64, ()))
        before = w[r, c].item()
        w[r, c] += 1
        assert not native.is_current(1, 1), (r, c)
        w[r, c] = before
    assert native.is_current(1, 1)


def test_one_element_is_seen_within_64_calls():
    w = torch.randn(1024, 2048)
    native = kept(w)
    for _ in range(100):
        r, c = int(torch.randint(1024, ())), int(torch.randint(2048, ()))
        before = w[r, c].item()
        w[r, c] += 1
        assert not all([native.is_current(1, 1) for _ in range(64)]), (r, c)
        w[r, c] = before
    assert all([native.is_current(1, 1) for _ in range(64)])


def layers(name):
    return getattr(pyflash.nn, name)(96, 80, batch_first=True).eval()


@pytest.mark.parametrize("steps, batch", [(1, 1), (1, 3), (9, 9)], ids=str)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("surgery", [name for name in SURGERY if "element" not in name and "part" not in name])
def test_surgery_between_steps_is_seen(surgery, name, steps, batch, cache):  # noqa: F811
    layer, x = layers(name), torch.randn(batch, steps, 96)
    hx = torch.randn(1, batch, 80)
    hx = (hx, hx) if name == "LSTM" else hx

    def run(weights):
        return torch.func.functional_call(layer, weights, (x, hx))[0]

    with use("cpu"), torch.no_grad():
        before = run({})
        for weight in ("weight_ih_l0", "weight_hh_l0"):
            p = getattr(layer, weight)
            for _ in range(3):
                SURGERY[surgery](p.data, int(torch.randint(1, p.shape[0], ())), int(torch.randint(1, 39, ())))
                found = run({})
                pyflash.clear_cache()
                assert torch.equal(found, run({})) and not torch.equal(found, before)
                before = found
    assert len(cache) == 1


def test_cells_in_turn_beyond_the_limit(cache, monkeypatch):  # noqa: F811
    from pyflash.ops.recurrent import _cpu as rnn

    packed = []
    of = rnn._Problem.panels
    monkeypatch.setattr(rnn._Problem, "panels", lambda *args: packed.append(args[3]) or of(*args))
    cells = [pyflash.nn.LSTMCell(48, 64) for _ in range(6)]
    x, h = torch.randn(2, 48), (torch.randn(2, 64), torch.randn(2, 64))

    def turns(count):
        for _ in range(count):
            for cell in cells:
                with torch.no_grad():
                    expected = torch.lstm_cell(x, h, *cell.parameters())
                    torch.testing.assert_close(cell(x, h), expected, atol=1e-5, rtol=1e-5)

    turns(1)
    monkeypatch.setattr(cache, "limit", cache.bytes // 2)
    pyflash.clear_cache()
    packed.clear()
    with use("auto"):
        before = backends.counts["lstm_cell", "torch", NOT_KEPT]
        turns(2 * PATIENCE)
        assert packed == [True] * 3 and len(cache) == 3
        assert backends.counts["lstm_cell", "torch", NOT_KEPT] - before == 3 * 2 * PATIENCE
    with use("cpu"):
        before = backends.counts["lstm_cell", "cpu", ""]
        turns(2)
        assert packed == [True] * 3 + [False] * 6  # for the call only
        assert backends.counts["lstm_cell", "cpu", ""] - before == 12
    del cells[:3]
    with use("auto"):
        turns(1)
    assert len(cache) == 3 and packed[9:] == [True] * 3


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_layers_beyond_the_limit(backend, cache, monkeypatch):  # noqa: F811
    monkeypatch.setattr(cache, "limit", 0)
    layer, theirs = pyflash.nn.GRU(24, 32, num_layers=3), torch.nn.GRU(24, 32, num_layers=3)
    theirs.load_state_dict(layer.state_dict())
    for steps in (1, 7):
        x = torch.randn(steps, 2, 24)
        with use(backend), torch.no_grad():
            for _ in range(2):
                for ours, expected in zip(layer(x), theirs(x)):
                    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert len(cache) == 0
