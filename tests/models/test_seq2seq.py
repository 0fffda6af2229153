"""Seq2Seq: its twin, padding, attention, and what it writes."""

from __future__ import annotations

import pytest
import torch
from helpers import backend_params

from pyflash import models
from tests.models.model_helpers import assert_same_results, assert_twins, on_backend, seeded, stirred

SIZES = {"source_vocab_size": 19, "target_vocab_size": 13, "width": 12}
CONFIGS = {
    "LSTM": {"cell": "lstm"},
    "two GRUs": {"cell": "gru", "depth": 2},
    "no attention": {"has_attention": False},
}
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]])


def config(name, **options):
    return models.Seq2SeqConfig(**{**SIZES, **CONFIGS[name], **options})


def text(tokens=6, seed=0, most=19, batch=3):
    return torch.randint(2, most, (batch, tokens), generator=torch.Generator().manual_seed(seed), device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_gives_the_twins_weights(name):
    assert_twins(models.Seq2Seq, config(name))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name, backend):
    arguments = [text(), text(4, 1, 13)]
    assert_same_results(models.Seq2Seq, config(name), arguments, backends=(backend,))
    options = {"attention_mask": MASK, "targets": text(4, 2, 13)}
    assert_same_results(models.Seq2Seq, config(name), arguments, options, backends=(backend,), modes=("train",))


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
@pytest.mark.parametrize("name", ["LSTM", "two GRUs"])
def test_on_triton(name, backend):
    on_backend(backend, models.Seq2Seq, config(name), [text(4, batch=2), text(3, 1, 13, 2)])


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name):
    model, ids, written = stirred(models.Seq2Seq(config(name))).eval(), text(), text(4, 1, 13)
    padded = model(ids, written, attention_mask=MASK)
    torch.testing.assert_close(model(ids.masked_fill(MASK == 0, 9), written, attention_mask=MASK.bool()), padded)
    for row, mask, start, found in zip(ids, MASK, written, padded):
        torch.testing.assert_close(found, model(row[None, mask == 1], start[None])[0])


def test_attention_weights():
    """They are what the decoder mixes the source by."""
    model, ids, written = stirred(models.Seq2Seq(config("LSTM"))).eval(), text(), text(4, 1, 13)
    weights = model.attention_weights(ids, written, attention_mask=MASK)
    assert weights.shape == (3, 4, 6) and not weights.masked_select(MASK.unsqueeze(1) == 0).any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4))
    memory, _, state = model._read(ids, MASK)
    states, _ = model.decoder(model.target(written), state)
    twin = models.Seq2Seq(config("LSTM"), nn=torch.nn)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.attention_weights(ids, written, attention_mask=MASK), weights)
    logits = model.head(model.combine(torch.cat((weights @ memory, states), -1)))
    torch.testing.assert_close(model(ids, written, attention_mask=MASK), logits)
    with pytest.raises(ValueError, match="has_attention is False, expected a model that attends"):
        models.Seq2Seq(config("no attention")).attention_weights(ids, written)


@pytest.mark.parametrize("library", ["pyflash", "torch"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_it_writes_is_what_the_whole_text_says(name, library):
    options = {"nn": torch.nn} if library == "torch" else {}
    model, ids = stirred(seeded(models.Seq2Seq, config(name), **options)).eval(), text()
    greedy = model.generate(ids, 7, attention_mask=MASK)
    says = model(ids, greedy[:, :-1], attention_mask=MASK).argmax(-1)
    for row, next_ones in zip(greedy, says):
        written = row[1:].tolist()
        length = written.index(1) + 1 if 1 in written else len(written)
        assert written[:length] == next_ones[:length].tolist() and not any(written[length:])
    drawn = seeded(model.generate, ids, 7, temperature=2.0, attention_mask=MASK)
    assert not torch.equal(drawn[:, : greedy.shape[1]], greedy[:, : drawn.shape[1]])


def test_targets_are_shifted_behind_the_start():
    model, ids, targets = models.Seq2Seq(config("LSTM")), text(), text(4, 1, 13)
    targets[0, 2] = -100
    logits, loss = model(ids, targets=targets)
    shifted = torch.cat((torch.zeros(3, 1, dtype=torch.int64), targets[:, :3].clamp(min=0)), 1)
    torch.testing.assert_close(logits, model(ids, shifted))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    with pytest.raises(ValueError, match="decoder_ids is None and targets too"):
        model(ids)


def test_it_learns_to_reverse():
    model = seeded(models.Seq2Seq, config("two GRUs", source_vocab_size=8, target_vocab_size=8, width=32))
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-2), torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(2, 8, (32, 4), generator=generator)
        optimizer.zero_grad()
        model(ids, targets=ids.flip(1))[1].backward()
        optimizer.step()
    ids = torch.randint(2, 8, (50, 4), generator=generator)
    assert (model.eval().generate(ids, 4)[:, 1:] == ids.flip(1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"cell": "rnn"}, "cell is 'rnn', expected one of 'lstm', 'gru'"),
        ({"depth": 0}, "depth is 0, expected an integer from 1 on"),
        ({"end_token": 13}, "end_token is 13, expected a token below target_vocab_size, 13"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.Seq2SeqConfig: {says}"):
        config("LSTM", **changed)


@pytest.mark.parametrize("mask", [[0, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_padding_stands_on_the_right(mask):
    with pytest.raises(ValueError, match="attention_mask has a 1 behind a 0, or nothing but 0"):
        models.Seq2Seq(config("LSTM"))(text(3, batch=1), text(2, 1, 13, 1), attention_mask=torch.tensor([mask]))
