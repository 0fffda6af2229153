"""BERT: its twin, padding, both heads, and the checkpoints of transformers."""

from __future__ import annotations

import pytest
import torch
from helpers import backend_params, use

from pyflash import models
from tests.models.model_helpers import assert_same_results, assert_twins, on_backend, seeded, stirred, trained

SIZES = {"vocab_size": 23, "context_length": 16, "width": 24, "depth": 2, "num_heads": 4}
CONFIGS = {"tokens": {}, "classes": {"num_classes": 3, "hidden": 40, "num_segments": 3, "activation": "relu"}}
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])


def config(name, **options):
    return models.BERTConfig(**{**SIZES, **CONFIGS[name], **options})


def text(batch=3, tokens=7, seed=0, most=23):
    return torch.randint(most, (batch, tokens), generator=torch.Generator().manual_seed(seed), device="cpu")


def targets(name):
    return text(seed=2) if name == "tokens" else torch.tensor([2, 0, 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_gives_the_twins_weights(name):
    assert_twins(models.BERT, config(name))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name, backend):
    assert_same_results(models.BERT, config(name), [text()], backends=(backend,))
    options = {"attention_mask": MASK, "segments": text(seed=3, most=2), "targets": targets(name)}
    assert_same_results(models.BERT, config(name), [text()], options, backends=(backend,), modes=("train", "eval"))


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
@pytest.mark.parametrize("name", CONFIGS)
def test_on_triton(name, backend):
    on_backend(
        backend, models.BERT, config(name, depth=1), [text()[:, :5]], {"attention_mask": MASK[:, :5] | MASK[:, 2:]}
    )


@pytest.mark.parametrize("library", ["pyflash", "torch"])
@pytest.mark.parametrize("name", CONFIGS)
def test_padding_changes_nothing(name, library):
    """On the right, where positions do not move: the same numbers for what is text, whatever stands behind it."""
    options = {"nn": torch.nn} if library == "torch" else {}
    model, ids = stirred(seeded(models.BERT, config(name), **options)).eval(), text()
    mask = torch.arange(7) < torch.tensor([[7], [5], [2]])
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            padded = model(ids, attention_mask=mask)
            torch.testing.assert_close(
                model(ids.masked_fill(~mask, 9), attention_mask=mask.long())[..., :2, :], padded[..., :2, :]
            )
            for row, length, found in zip(ids, (7, 5, 2), padded):
                alone = model(row[None, :length])[0]
                torch.testing.assert_close(found[:length] if name == "tokens" else found, alone)


def test_the_loss_counts_what_was_hidden():
    model, ids, hidden = models.BERT(config("tokens")), text(), torch.full((3, 7), -100)
    hidden[0, 2], hidden[2, 6] = 5, 9
    logits, loss = model(ids, hidden)
    expected = -(logits[0, 2].log_softmax(-1)[5] + logits[2, 6].log_softmax(-1)[9]) / 2
    torch.testing.assert_close(loss, expected)
    assert torch.equal(model(ids), logits)


def test_segments_are_of_the_first_unless_said():
    model, ids = stirred(models.BERT(config("tokens"))).eval(), text()
    assert torch.equal(model(ids), model(ids, segments=torch.zeros_like(ids)))
    assert not torch.allclose(model(ids), model(ids, segments=torch.ones_like(ids)))


def test_the_head_of_tokens_is_tied():
    model = models.BERT(config("tokens"))
    assert model.head.out.weight is model.tokens.weight
    with torch.device("meta"):
        base = models.BERT(models.BERTConfig(30522, 512, 768, 12, 12))
    assert sum(p.numel() for p in base.parameters()) == 109_514_298  # bert-base-uncased with its MLM head


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_classes": 0}, "num_classes is 0, expected an integer from 1 on"),
        ({"num_heads": 7}, "num_heads is 7, expected a divisor of width, 24"),
        ({"vocab_size": 2.5}, "vocab_size is 2.5, expected an integer"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.BERTConfig: {says}"):
        config("tokens", **changed)


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="ids has 17 tokens, expected at most context_length, 16"):
        models.BERT(config("tokens"))(text(1, 17))


@pytest.mark.slow
def test_one_graph():
    model, ids = trained(models.BERT, config("tokens"))[0].eval(), text()
    with use("cpu"):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(ids, attention_mask=MASK), model(ids, attention_mask=MASK))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_own(name):
    transformers = pytest.importorskip("transformers")
    cls, options = transformers.BertForMaskedLM, {"intermediate_size": 96}
    if name == "classes":
        cls = transformers.BertForSequenceClassification
        options = {"intermediate_size": 40, "type_vocab_size": 3, "num_labels": 3, "hidden_act": "relu"}
    there = {"vocab_size": 23, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = stirred(seeded(cls, transformers.BertConfig(**there, max_position_embeddings=16, **options))).eval()
    ours = models.load(models.BERT(config(name)), theirs.state_dict()).eval()
    ids, segments = text(), text(seed=3, most=2)
    found = ours(ids, attention_mask=MASK, segments=segments)
    expected = theirs(ids, attention_mask=MASK, token_type_ids=segments).logits
    is_text = MASK.bool() if name == "tokens" else MASK[:, 0].bool()
    torch.testing.assert_close(found[is_text], expected[is_text], atol=2e-5, rtol=2e-5)
