"""Of every model with a dropout: it is drawn in training, anew each time, and in training only."""

from __future__ import annotations

import pytest
import torch

from pyflash import models
from tests.models.model_helpers import seeded

IDS = torch.arange(2, 14).reshape(2, 6)
PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MODELS = {  # what builds it with a dropout, and what it is called with
    "GPT": (lambda p, **nn: models.GPT(models.GPTConfig(16, 8, 12, 2, 2, dropout=p), **nn), (IDS,)),
    "gated GPT": (
        lambda p, **nn: models.GPT(models.GPTConfig(16, 8, 12, 2, 2, positions="rotary", gated=True, dropout=p), **nn),
        (IDS,),
    ),
    "ViT": (lambda p, **nn: models.ViT(models.ViTConfig(8, 4, 12, 2, 2, dropout=p), **nn), (PICTURES,)),
    "BERT": (lambda p, **nn: models.BERT(models.BERTConfig(16, 8, 12, 2, 2, dropout=p), **nn), (IDS,)),
    "BERT of classes": (lambda p, **nn: models.BERT(models.BERTConfig(16, 8, 12, 2, 2, 3, dropout=p), **nn), (IDS,)),
    "T5": (lambda p, **nn: models.T5(models.T5Config(16, 12, 2, 2, dropout=p), **nn), (IDS, IDS)),
    "T5 1.0": (lambda p, **nn: models.T5(models.T5Config(16, 12, 2, 2, gated=False, dropout=p), **nn), (IDS, IDS)),
    "CLIP": (
        lambda p, **nn: models.CLIP(models.CLIPConfig(16, 8, 8, 4, 12, 1, 2, 12, 1, 2, 6, dropout=p), **nn),
        (PICTURES, IDS),
    ),
    "Seq2Seq": (lambda p, **nn: models.Seq2Seq(models.Seq2SeqConfig(16, 16, 12, 2, dropout=p), **nn), (IDS, IDS)),
}


@pytest.mark.parametrize("library", ["pyflash", "torch"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_drawn_in_training(name, library):
    build, arguments = MODELS[name]
    options = {"nn": torch.nn} if library == "torch" else {}
    model, without = seeded(build, 0.3, **options), seeded(build, 0.0, **options)
    assert list(model.state_dict()) == list(without.state_dict())
    drawn = [seeded(model, *arguments), seeded(model, *arguments), model(*arguments)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])
    torch.testing.assert_close(model.eval()(*arguments), without.eval()(*arguments))
    torch.testing.assert_close(without.train()(*arguments), without.eval()(*arguments))
    seeded(model.train(), *arguments).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if n != "segments.weight"
    )
