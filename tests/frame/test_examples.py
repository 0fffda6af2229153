"""The examples run, notice a difference, and say what is missing."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from helpers import backend_params, use

from pyflash.cli import _digits, demo
from pyflash.cli import _language_model as lm

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


@pytest.fixture
def tiny_gpt(monkeypatch):
    example = load("train_gpt")
    monkeypatch.setattr(lm, "topics", lambda: "To be, or not to be, that is the question. " * 40)
    settings = lm.Settings(
        width=16, heads=2, hidden=24, layers=1, context=40, batch=2, steps=3, warmup=1, held_out_batches=1
    )
    monkeypatch.setattr(example, "QUICK", settings)
    return example


def test_gpt(tiny_gpt, tmp_path, capsys):
    assert tiny_gpt.main(["--quick", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert (
        "all comparisons passed" in printed and "  | The stateent" in printed and "behind each of 3 prompts" in printed
    )
    assert (tmp_path / "train-gpt.png").exists() or "no picture" in printed


def test_gpt_fails_when_the_curves_or_the_texts_differ(tiny_gpt, tmp_path, monkeypatch, capsys):
    def other(model):
        with torch.no_grad():
            model.norm.weight[3] += 3
        return demo.pyflash.replace(model), demo.Counter(Linear=1)

    monkeypatch.setattr(demo, "replace", other)
    monkeypatch.setattr(tiny_gpt, "write", lambda model, corpus, prompts, length, use_cache=True: [str(use_cache)])
    assert tiny_gpt.main(["--quick", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: the loss curves differ" in printed and "FAILED: with the cache another text is written" in printed


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


def drawings():
    """Ten pictures, each with some noise, as often as the digits need for a batch or two."""
    generator = torch.Generator().manual_seed(3)
    shown = torch.arange(400) % 10
    pictures = torch.randn(10, 1, 8, 8, generator=generator)
    return pictures[shown] + 0.1 * torch.randn(400, 1, 8, 8, generator=generator), shown


def small(monkeypatch, name, **values):
    """An example with these in the place of its own constants."""
    example = load(name)
    for constant, value in values.items():
        monkeypatch.setattr(example, constant, value)
    return example


@pytest.fixture
def drawn(monkeypatch):
    return small(monkeypatch, "digits_cnn", digits=drawings, HELD_OUT=50)


@pytest.mark.parametrize("backend", [None, *backend_params("cpu")])
def test_digits(drawn, backend, tmp_path, capsys):
    with use(backend) if backend else nullcontext():
        assert drawn.main(["--epochs", "6", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and "4 ReLU, 3 Linear, 2 Sequential, 2 Conv2d, 2 MaxPool2d" in printed
    assert "held out 100.00%" in printed
    assert (tmp_path / "digits.png").exists() or "no picture" in printed


def test_digits_fail_when_the_curves_differ_or_nothing_was_learnt(drawn, tmp_path, monkeypatch, capsys):
    def other(model):
        with torch.no_grad():
            model.features[0].bias[3] += 3
        return demo.pyflash.replace(model), demo.Counter(Conv2d=1)

    monkeypatch.setattr(demo, "replace", other)
    assert drawn.main(["--epochs", "6", "--out", str(tmp_path)]) == 1
    assert "FAILED: the loss curves differ" in capsys.readouterr().out
    monkeypatch.setattr(drawn, "LEARNING_RATE", 1e-9)
    assert drawn.main(["--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "FAILED: pyflash reads" in capsys.readouterr().out


def test_digits_are_counted_and_filters_laid_out():
    example = load("digits_cnn")
    shown, found = torch.tensor([3, 3, 9, 0]), torch.tensor([3, 5, 9, 9])
    table = example.confusion(shown, found)
    assert table.sum() == 4 and [table[3, 3], table[3, 5], table[9, 9], table[0, 9]] == [1, 1, 1, 1]
    filters = torch.arange(24.0).reshape(6, 2, 2)
    laid = _digits.mosaic(filters, 3)
    assert laid.shape == (5, 8) and torch.equal(laid[3:, 3:5], filters[4]) and laid[2].isnan().all()


def test_digits_say_what_is_missing(monkeypatch):
    example = load("digits_cnn")
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"pip install 'pyflash\[examples\]'"):
        example.main([])


@pytest.fixture
def adversaries(monkeypatch):
    """The digits' GAN with drawings that are quickly learnt, and few of everything."""
    example = load("digits_gan")

    def squares():
        """A bright pair of rows or of columns, in one of five places: ten drawings."""
        shown = torch.arange(640) % 10
        x = torch.full((640, 1, 8, 8), -0.9)
        for i in range(640):
            place = int(shown[i]) % 5 + 1
            x[(i, 0, slice(place, place + 2)) if shown[i] < 5 else (i, 0, slice(None), slice(place, place + 2))] = 0.9
        return x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)), shown

    monkeypatch.setattr(example, "digits", squares)
    for name, value in (("HELD_OUT", 200), ("SAMPLES", 300), ("TIMED_BLOCKS", 1), ("TIMED_STEPS", 1)):
        monkeypatch.setattr(example, name, value)
    return example


@pytest.mark.parametrize("model", ["dcgan", "wgan-gp", "style"])
def test_adversaries(model, adversaries, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(adversaries, "WANTED_SHARE", 2.0)  # the whole is tried here, what it learns with true digits
    monkeypatch.setattr(adversaries, "WANTED_DIGITS", 0)
    assert adversaries.main(["--model", model, "--epochs", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "it has learned to write digits" in printed and "a step: torch.nn" in printed
    assert (tmp_path / model / "losses.png").exists() or "no picture" in printed


def test_adversaries_that_learn_nothing_fail(adversaries, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(adversaries.RECIPES["dcgan"].training, "learning_rate", 0.0)
    assert adversaries.main(["--epochs", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: the distance is" in printed and "FAILED: samples show" in printed


def test_the_distance_is_frechets(adversaries):
    """Of features that are shifted: the square of the shift. Of features twice as wide: the trace of the covariance."""
    judge = adversaries.Judge.__new__(adversaries.Judge)
    features = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    judge.real, judge._features = features, lambda x: x
    assert judge.distance(features) == pytest.approx(0, abs=1e-9)
    assert judge.distance(features + 2) == pytest.approx(6 * 4)
    assert judge.distance(features * 2 - features.mean(0)) == pytest.approx(features.T.cov().trace().item())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dcgan", "wgan-gp", "style"])
def test_adversaries_of_scikit_learn(model, tmp_path, capsys):
    """The true digits, where it is installed."""
    pytest.importorskip("sklearn")
    assert load("digits_gan").main(["--model", model, "--quick", "--out", str(tmp_path)]) == 0, capsys.readouterr().out


@pytest.fixture
def drawn_flat(monkeypatch):
    """digits_mlp with drawings that are quickly learnt."""
    flat = drawings()[0].flatten(1), drawings()[1]
    return small(monkeypatch, "digits_mlp", digits=lambda: flat, HELD_OUT=50)


@pytest.mark.parametrize("backend", [None, *backend_params("cpu")])
def test_digits_by_a_feed_forward_net(drawn_flat, backend, tmp_path, capsys):
    with use(backend) if backend else nullcontext():
        assert drawn_flat.main(["--epochs", "6", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and "3 Linear, 2 ReLU, 1 Sequential" in printed
    assert "held out 100.00%" in printed and "5 healthy; 1 forwards" in printed
    assert (tmp_path / "digits-mlp.png").exists() or "no picture" in printed


def test_a_feed_forward_net_that_learns_nothing_fails(drawn_flat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawn_flat, "LEARNING_RATE", 1e-9)
    assert drawn_flat.main(["--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "FAILED: pyflash reads" in capsys.readouterr().out


def test_vanishing_gradients(tmp_path, capsys):
    example = load("vanishing_gradients")
    assert example.main(["--steps", "2", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all of it as the verdicts say" in printed and printed.count("healthy") == 6
    assert (tmp_path / "vanishing-gradients.png").exists() or "no picture" in printed


def test_gradients_that_do_not_vanish_are_noticed(tmp_path, monkeypatch, capsys):
    example = load("vanishing_gradients")
    monkeypatch.setitem(example.DEEP, "sigmoid", example.DEEP["ReLU, He's weights"])
    monkeypatch.setitem(example.DEEP, "tanh, residual", example.DEEP["tanh, Xavier's weights"])
    monkeypatch.setattr(example, "RECURRENT", {"GRU, update gate open": example.RECURRENT["LSTM"]})
    assert example.main(["--steps", "1", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert (
        "FAILED: sigmoid: gradients do not vanish" in printed
        and "FAILED: GRU, update gate open: gradients vanish" in printed
    )
    assert printed.count("FAILED") == 2


@pytest.mark.parametrize("backend", ["auto", *backend_params("cpu", "triton", "torch")])
def test_the_chain_rule_by_hand(backend, tmp_path, monkeypatch, capsys):
    example = load("backprop_by_hand")
    monkeypatch.setattr(example, "BACKEND", backend.partition(":")[0])
    steps = 3 if backend == "triton" else example.QUICK_STEPS
    monkeypatch.setattr(example, "LEARNED", 1.1 if backend == "triton" else example.LEARNED)
    with use(backend):
        assert example.main(["--steps", str(steps), "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and printed.count("in one operator") == 3
    assert (tmp_path / "backprop.png").exists() or "no picture" in printed


def test_a_wrong_chain_rule_is_noticed(tmp_path, monkeypatch, capsys):
    example = load("backprop_by_hand")
    right = example.backward

    def forgets_the_slope(dy, x, W, y):
        return right(dy / (y * (1 - y)), x, W, y)

    monkeypatch.setattr(example, "backward", forgets_the_slope)
    assert example.main(["--steps", "30", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: dW is further from float64 than rounding" in printed and "FAILED: the curves differ" in printed


@pytest.fixture
def drawn_in_patches(monkeypatch):
    """digits_vit with drawings that are quickly learnt."""
    return small(monkeypatch, "digits_vit", digits=drawings, HELD_OUT=50)


@pytest.mark.parametrize("backend", [None, *backend_params("cpu")])
def test_digits_by_a_vision_transformer(drawn_in_patches, backend, tmp_path, capsys):
    with use(backend) if backend else nullcontext():
        assert drawn_in_patches.main(["--epochs", "6", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and "2 TransformerEncoderLayer, 2 MultiheadAttention" in printed
    assert "held out 100.00%" in printed
    assert (tmp_path / "digits-vit.png").exists() or "no picture" in printed


def test_attention_is_shared_out_among_the_patches_of_each_picture(drawn_in_patches):
    model = drawn_in_patches.build()
    maps = drawn_in_patches.attended(model, drawings()[0][:3])
    assert maps.shape == (2, 3, 4, 4)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))
    with torch.no_grad():  # of keys that are all the same the shares are, too
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight.zero_()
    torch.testing.assert_close(drawn_in_patches.attended(model, drawings()[0][:3]), torch.full((2, 3, 4, 4), 1 / 16))


@pytest.fixture
def drawn_and_told(monkeypatch):
    """digits_clip with other drawings."""
    return small(monkeypatch, "digits_clip", digits=drawings, HELD_OUT=50)


@pytest.mark.parametrize("backend", [None, *backend_params("cpu")])
def test_digits_by_their_names(drawn_and_told, backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawn_and_told, "WANTED", -1)  # the whole is tried here, what it learns with true digits
    with use(backend) if backend else nullcontext():
        assert drawn_and_told.main(["--epochs", "1", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and "3 TransformerEncoderLayer" in printed
    assert (tmp_path / "digits-clip.png").exists() or "no picture" in printed


def test_names_that_are_not_learnt_fail(drawn_and_told, tmp_path, capsys):
    assert drawn_and_told.main(["--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "FAILED: pyflash reads" in capsys.readouterr().out


def test_a_batch_has_a_picture_of_each_digit_and_its_name_in_a_known_form(drawn_and_told):
    example, (_, shown) = drawn_and_told, drawings()
    known = {form.format(name): digit for digit, name in enumerate(example.NAMES) for form in example.LEARNED}
    texts, seen = list(known), []
    table = example.tokens(texts)
    assert len(set(map(tuple, table.tolist()))) == len(texts)
    for rows, ids in example.pairs(shown, 1):
        assert shown[rows].tolist() == list(range(10))
        found = [texts[int((table == row).all(1).nonzero())] for row in ids]
        assert [known[text] for text in found] == list(range(10))
        seen += rows.tolist()
    assert len(seen) == len(set(seen)) == len(shown)
    assert not {example.UNSEEN.format(name) for name in example.NAMES} & set(known)


@pytest.fixture
def drawn_by_label(monkeypatch):
    """digits_dalle with other drawings, and few of everything."""
    return small(monkeypatch, "digits_dalle", digits=drawings, HELD_OUT=50, CODE_EPOCHS=1, DRAWN=1, SHOWN=2)


@pytest.mark.parametrize("backend", [None, *backend_params("cpu")])
def test_digits_by_label(drawn_by_label, backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawn_by_label, "WANTED", -1)  # the whole is tried here, what it learns with true digits
    with use(backend) if backend else nullcontext():
        assert drawn_by_label.main(["--epochs", "1", "--out", str(tmp_path)]) in (0, 1)
    printed = capsys.readouterr().out
    assert "reads 100.0% of 50 others" in printed and "9 Linear, 5 LayerNorm" in printed
    assert "curves differ" not in "".join(line for line in printed.splitlines() if line.startswith("FAILED"))
    assert (tmp_path / "digits-dalle.png").exists() or "no picture" in printed


def test_digits_that_are_not_read_as_their_label_fail(drawn_by_label, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawn_by_label, "LEARNING_RATE", 1e-9)
    assert drawn_by_label.main(["--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "FAILED: GPT: pyflash has" in capsys.readouterr().out


def test_a_judge_is_asked_about_as_many_of_each_digit(drawn_by_label):
    drawn, labels = drawn_by_label.draw_digits(drawn_by_label.build(), 3)
    assert drawn.shape == (30, 1, 8, 8) and torch.bincount(labels).tolist() == [3] * 10
    again, _ = drawn_by_label.draw_digits(drawn_by_label.build(), 3)
    assert torch.equal(drawn, again)


@pytest.fixture
def dates(monkeypatch):
    return small(monkeypatch, "seq2seq_dates", BATCH=8, HELD_OUT=12)


@pytest.mark.parametrize("backend", [None, *backend_params("cpu")])
def test_dates(dates, backend, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dates, "WANTED", -1)  # the whole is tried here, what it learns at full length
    with use(backend) if backend else nullcontext():
        assert dates.main(["--steps", "6", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "all comparisons passed" in printed and "2 GRU" in printed
    assert (tmp_path / "seq2seq-dates.png").exists() or "no picture" in printed


def test_dates_that_are_not_learnt_fail(dates, tmp_path, capsys):
    assert dates.main(["--steps", "2", "--out", str(tmp_path)]) == 1
    assert "FAILED: pyflash writes 0.00% of the held-out dates" in capsys.readouterr().out


def test_dates_are_told_as_they_are_said(dates):
    day = dates.SHOWN
    assert [dates.told(day, form) for form in dates.FORMS] == [
        "saturday, 14th of march 1987", "14 march 1987", "march 14, 1987", "mar 14, 1987",
        "saturday the 14th, mar 1987", "in 1987, on march 14",
    ]  # fmt: skip
    suffixes = {n: dates.told(day.replace(day=n), "{th}") for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 31)}
    assert " ".join(suffixes.values()) == "st nd rd th th th th st nd rd st"
    assert dates.targets_of([day]).tolist() == [[3, 11, 10, 9, 12, 2, 5, 12, 3, 6, dates.END]]
    learned, held_out = dates.calendar_days()
    assert day not in learned + held_out and not set(learned) & set(held_out)


def test_a_date_is_right_when_every_letter_is(dates, monkeypatch):
    days = [dates.SHOWN, dates.SHOWN.replace(day=15)]
    model = dates.build()
    begun = torch.full((2, 1), dates.START)
    written = torch.cat((begun, dates.targets_of(days)), 1)
    monkeypatch.setattr(model, "generate", lambda *_, **__: written)
    assert dates.without_mistake(model, days) == 1
    written[1, 3] += 1
    assert dates.without_mistake(model, days) == 0.5
    monkeypatch.setattr(model, "generate", lambda *_, **__: written[:, :5])
    assert dates.without_mistake(model, days) == 0


@pytest.mark.slow
def test_dates_at_length(tmp_path, capsys):
    assert load("seq2seq_dates").main(["--quick", "--out", str(tmp_path)]) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_cnn", "digits_mlp", "digits_vit", "digits_clip", "digits_dalle"])
def test_scikit_learns_digits(name, tmp_path, capsys):
    """The true ones, where it is installed."""
    pytest.importorskip("sklearn")
    assert load(name).main(["--quick", "--out", str(tmp_path)]) == 0, capsys.readouterr().out
