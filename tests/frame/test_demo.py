"""The demo's judgement, its text and its batches. Nothing is trained for long and nothing is timed."""

import io

import pytest
import torch

from pyflash.__main__ import main
from pyflash.cli import _language_model as lm
from pyflash.cli import demo
from pyflash.show.progress import Progress

TINY = lm.Settings(width=16, heads=2, hidden=32, layers=1, context=12, batch=2, steps=3, warmup=1, held_out_batches=2)
TEXT = "the quick brown fox jumps over the lazy dog, " * 20
NAN = float("nan")

FASTER = {0.0: (demo.Pace(2.0, 1), demo.Pace(1.0, 1)), 0.1: (demo.Pace(4.0, None), demo.Pace(1.0, None))}


def curve(change=None, held_out=1.5) -> demo.Run:
    losses = [4.0 - step / 100 for step in range(200)]
    for step, factor in (change or {}).items():
        losses[step] *= factor
    return demo.Run(losses, held_out, seconds=1.0)


CASES = [  # ours, modules replaced, paces, what is said
    (curve(), 9, FASTER, []),
    (curve({50: 1.0009, 150: 1.5}, held_out=1.514), 9, FASTER, []),
    (curve({99: 1.0011}), 9, FASTER, ["curves differ"]),
    (curve({3: 0.998}), 9, FASTER, ["curves differ"]),
    (curve({3: NAN}), 9, FASTER, ["curves differ"]),
    (curve(held_out=1.516), 9, FASTER, ["held-out losses differ"]),
    (curve(held_out=NAN), 9, FASTER, ["held-out losses differ"]),
    (curve(), 0, FASTER, ["nothing was replaced"]),
    (curve(), 9, FASTER | {0.1: (demo.Pace(1.0, 1), demo.Pace(1.0, 1))}, ["dropout 0.1 the replaced model is not"]),
    (curve(), 9, FASTER | {0.0: (demo.Pace(1.0, 1, 0.03), demo.Pace(1.02, 1, 0.01))}, []),  # within the spread
    (
        curve(),
        9,
        FASTER | {0.0: (demo.Pace(1.0, 1, 0.01), demo.Pace(1.02, 1))},
        ["dropout 0 the replaced model is not"],
    ),
    (curve({0: 2.0}, held_out=9.0), 0, {0.0: FASTER[0.0][::-1]}, ["nothing", "curves", "held-out", "dropout 0 the"]),
]


@pytest.mark.parametrize(("ours", "replaced", "paces", "said"), CASES)
def test_what_fails_the_demo(ours, replaced, paces, said):
    found = demo.failures(curve(), ours, replaced, paces)
    assert len(found) == len(said)
    assert all(part in reason for part, reason in zip(said, found))


def test_the_text_is_split_once_and_for_all():
    first, again = lm.Corpus.from_text(lm.topics()), lm.Corpus.from_text(lm.topics())
    assert torch.equal(first.train, again.train) and torch.equal(first.held_out, again.held_out)
    assert len(first.train) + len(first.held_out) == len(lm.topics()) > 300_000
    assert 0.09 < len(first.held_out) / len(lm.topics()) <= 0.1
    decoded = "".join(first.alphabet[i] for i in torch.cat([first.train[-40:], first.held_out[:40]]))
    assert decoded in lm.topics()


def test_batches_are_the_same_for_every_model_and_never_held_out():
    corpus = lm.Corpus.from_text(TEXT)
    batches = list(lm.training_batches(corpus, TINY, "cpu"))
    for (inputs, targets), (inputs_again, targets_again) in zip(batches, lm.training_batches(corpus, TINY, "cpu")):
        assert torch.equal(inputs, inputs_again) and torch.equal(targets, targets_again)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert inputs.shape == (TINY.batch, TINY.context)
    starts = torch.tensor([len(corpus.train) - TINY.context - 1])
    assert torch.equal(lm.batch_at(corpus.train, starts, TINY.context)[1][0, -1], corpus.train[-1])


def test_the_model_looks_only_back():
    corpus = lm.Corpus.from_text(TEXT)
    model = lm.build(corpus, TINY, 0.0, "cpu")
    one = corpus.train[: TINY.context][None]
    other = one.clone()
    other[0, -1] = (other[0, -1] + 1) % len(corpus.alphabet)
    assert torch.equal(model(one)[0, :-1], model(other)[0, :-1])


def test_every_model_starts_from_the_same_weights():
    corpus = lm.Corpus.from_text(TEXT)
    models = [lm.build(corpus, TINY, dropout, "cpu") for dropout in (0.0, 0.1)]
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(one, other)


def test_one_model_twice_learns_the_same():
    corpus = lm.Corpus.from_text(TEXT)
    runs = []
    for _ in range(2):
        model = lm.build(corpus, TINY, 0.0, "cpu")
        losses = lm.train(model, corpus, TINY, "cpu", lambda loss: None)
        runs.append((losses, lm.held_out_loss(model, corpus, TINY, "cpu")))
    assert runs[0] == runs[1]
    assert len(runs[0][0]) == TINY.steps


def test_a_sample_continues_its_prompt():
    corpus = lm.Corpus.from_text(TEXT)
    model = lm.build(corpus, TINY, 0.0, "cpu")
    text = lm.sample(model, corpus, TINY, "cpu", prompt="the fox", length=20)
    assert text.startswith("the fox") and len(text) == 27
    assert text == lm.sample(model, corpus, TINY, "cpu", prompt="the fox", length=20)


def test_memory_of_a_call():
    added = demo.Memory("cpu").added_by(lambda: torch.ones(8 << 20))
    assert added is None or added >= 30 << 20


class Changed(torch.nn.Linear):
    pass


def test_replaced_modules_are_counted(monkeypatch):
    def swap(model):
        model.head.__class__ = Changed
        return model

    monkeypatch.setattr(demo.pyflash, "replace", swap, raising=False)
    model = lm.build(lm.Corpus.from_text(TEXT), TINY, 0.0, "cpu")
    replaced, changed = demo.replace(model)
    assert replaced is model and dict(changed) == {"Linear": 1}
    assert demo.replace(model)[1].total() == 0


def run_tiny(tmp_path, monkeypatch, replace):
    monkeypatch.setattr(demo.pyflash, "replace", replace, raising=False)
    monkeypatch.setattr(demo.lm, "topics", lambda: TEXT)
    return demo.run(TINY, "cpu", tmp_path / "out", rounds=1, length=5, report=False)


def test_the_demo_runs_and_fails_when_nothing_was_replaced(tmp_path, monkeypatch, capsys):
    assert run_tiny(tmp_path, monkeypatch, lambda model: model) == 1
    out = capsys.readouterr().out
    assert "replaced  0 of" in out and "FAILED: nothing was replaced" in out
    assert "the curves differ by at most 0.0e+00" in out and "tokens a second" in out
    assert (tmp_path / "out" / "loss.png").exists() or "no picture" in out


def test_a_replacement_that_computes_something_else_fails_the_demo(tmp_path, monkeypatch, capsys):
    class Off(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.01

    def replace(model):
        model.head.__class__ = Off
        return model

    assert run_tiny(tmp_path, monkeypatch, replace) == 1
    assert "FAILED: the loss curves differ" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "many"], ["--device", "tpu"]])
def test_bad_arguments(arguments):
    with pytest.raises(SystemExit) as caught:
        main(["demo", *arguments])
    assert caught.value.code == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(stream, monkeypatch, rich=True):
    if not rich:
        monkeypatch.setattr(Progress, "_rich_bar", lambda self: None)
    with Progress("work", 2, stream) as progress:
        progress.note("first")
        progress.print("a finished row [0]")
        progress.advance()
        progress.advance("done")
    return stream.getvalue()


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch):
    text = show(io.StringIO(), monkeypatch)
    assert "a finished row [0]\n" in text and text.endswith("work: 2/2 done\n")
    assert "\r" not in text and "\033" not in text


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_a_bar_on_a_terminal(monkeypatch, rich):
    if rich:
        pytest.importorskip("rich")
    text = show(Terminal(), monkeypatch, rich)
    assert "a finished row [0]" in text and "work" in text and "2/2" in text
