"""The examples run, notice a difference, and say what is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from pyflash.cli import _language_model as lm
from pyflash.cli import demo

FOLDER = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny(monkeypatch):
    example = load("char_lm")
    monkeypatch.setattr(example, "HIDDEN", 16)
    monkeypatch.setattr(lm, "topics", lambda: "To be, or not to be, that is the question. " * 40)
    settings = lm.Settings(layers=2, context=12, batch=2, steps=3, warmup=1, held_out_batches=1)
    monkeypatch.setattr(example, "QUICK", settings)
    return example


def test_characters(tiny, tmp_path, capsys):
    assert tiny.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and "replaced  3 of 4 modules: 1 Embedding, 1 GRU, 1 Linear" in printed
    assert "a sample from the replaced GRU" in printed


def test_characters_fail_when_the_curves_differ(tiny, tmp_path, monkeypatch, capsys):
    def other(model):
        with torch.no_grad():
            model.head.bias[3] += 3
        return demo.pyflash.replace(model), demo.Counter(LSTM=1)

    monkeypatch.setattr(demo, "replace", other)
    assert tiny.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "FAILED: LSTM: the loss curves differ" in capsys.readouterr().out


def test_the_streamed_sample_is_what_the_whole_text_gives(tiny):
    """Greedy here: what a step of one character says is what the whole text says of its last one."""
    corpus = lm.Corpus.from_text(lm.topics())
    model = demo.replace(tiny.build("LSTM", corpus, tiny.QUICK))[0].eval()
    state, written = None, torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(9):
            logits, state = model.step(written[:, -1:], state)
            torch.testing.assert_close(logits[:, -1], model(written)[:, -1])
            written = torch.cat([written, logits.argmax(-1)], 1)


def test_forecast(tmp_path, monkeypatch, capsys):
    example = load("forecast")
    years = torch.arange(1700, 2009)
    monkeypatch.setattr(example, "sunspots", lambda: (years, 50 + 40 * (years / 11 * 6.2832).sin()))
    assert example.main(["--epochs", "40", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "isinstance changed: layers" in printed and "all comparisons passed" in printed


def test_forecast_says_what_is_missing(monkeypatch):
    example = load("forecast")
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    monkeypatch.setitem(sys.modules, "statsmodels.datasets", None)
    with pytest.raises(SystemExit, match=r"pip install 'pyflash\[examples\]'"):
        example.main([])
