"""CLIP: its twin, what it reads of a text, the contrastive loss, and the checkpoints of transformers."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import backend_params, use

from pyflash import models
from tests.models.model_helpers import assert_same_results, assert_twins, on_backend, seeded, stirred, trained

CONFIG = models.CLIPConfig(23, 8, 8, 4, 16, 2, 2, 24, 1, 4, features=12, channels=2, text_hidden=40)


def text(batch=3, tokens=6, seed=0):
    """Each ends somewhere with the last token."""
    ids = torch.randint(22, (batch, tokens), generator=torch.Generator().manual_seed(seed), device="cpu")
    for row in range(batch):
        ids[row, row % tokens + 1] = 22
    return ids


def pictures(batch=3):
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(0), device="cpu")


def test_a_seed_gives_the_twins_weights():
    assert_twins(models.CLIP, CONFIG)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("with_loss", [False, True])
def test_logits_and_gradients(with_loss, backend):
    options = {"with_loss": with_loss}

    class Fixed(models.CLIP):
        def forward(self, images, ids):
            return super().forward(images, ids, **options)

    assert_same_results(Fixed, CONFIG, [pictures(), text()], backends=(backend,))


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
def test_on_triton(backend):
    on_backend(backend, models.CLIP, CONFIG, [pictures(2), text(2, 4)])


def test_a_text_is_read_to_its_end():
    model, ids = stirred(models.CLIP(CONFIG)).eval(), text()
    behind = torch.arange(6) > ids.argmax(1, keepdim=True)
    torch.testing.assert_close(model.text_features(ids.masked_fill(behind, 3)), model.text_features(ids))
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % 22
    assert not torch.allclose(model.text_features(other), model.text_features(ids))


def test_logits_are_cosines():
    model = stirred(models.CLIP(CONFIG)).eval()
    images, ids = pictures(4), text(3)
    logits = model(images, ids)
    assert logits.shape == (4, 3)
    lengths = torch.cat((model.image_features(images), model.text_features(ids))).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(7))
    cosines = model.image_features(images) @ model.text_features(ids).T
    torch.testing.assert_close(logits, cosines * model.logit_scale.exp())
    assert models.CLIP(CONFIG).logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    torch.testing.assert_close(model(images, ids), cosines * 100)


def test_the_loss_looks_both_ways():
    model, images, ids = stirred(models.CLIP(CONFIG)), pictures(), text()
    logits, loss = model(images, ids, with_loss=True)
    expected = -(logits.log_softmax(0).diag().mean() + logits.log_softmax(1).diag().mean()) / 2
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ValueError, match="3 images and 2 ids, expected as many of both"):
        model(images, ids[:2], with_loss=True)


def test_it_learns_pairs():
    model, images, ids = seeded(models.CLIP, CONFIG), pictures(), text()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(images, ids, with_loss=True)[1].backward()
        optimizer.step()
    assert model.eval()(images, ids).argmax(1).tolist() == [0, 1, 2]
    assert model(images, ids, with_loss=True)[1] < math.log(3) / 4  # of a guess


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"patch_size": 3}, "patch_size is 3, expected a divisor of image_size, 8"),
        ({"text_num_heads": 3}, "text_num_heads is 3, expected a divisor of text_width, 16"),
        ({"image_depth": 0}, "image_depth is 0, expected an integer from 1 on"),
        ({"activation": "silu"}, "activation is 'silu', expected one of"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.CLIPConfig: {says}"):
        models.CLIPConfig(**{**vars(CONFIG), **changed})


def test_what_does_not_fit_is_refused():
    model = models.CLIP(CONFIG)
    with pytest.raises(ValueError, match="ids has 9 tokens, expected at most context_length, 8"):
        model(pictures(), text(3, 9))
    with pytest.raises(ValueError, match=r"images has shape \(3, 2, 4, 8\), expected \[N, 2, 8, 8\]"):
        model(pictures()[:, :, :4], text())


@pytest.mark.slow
def test_one_graph():
    model, arguments = trained(models.CLIP, CONFIG)[0].eval(), (pictures(), text())
    with use("cpu"):
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend="aot_eager")(*arguments), model(*arguments)
        )


@pytest.mark.slow
def test_transformers_own():
    transformers = pytest.importorskip("transformers")
    of_text = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40, "vocab_size": 23,
        "max_position_embeddings": 8, "eos_token_id": 22, "bos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    of_images = {
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 8,
        "patch_size": 4, "num_channels": 2,
    }  # fmt: skip
    there = transformers.CLIPConfig(text_config=of_text, vision_config=of_images, projection_dim=12)
    theirs = stirred(seeded(transformers.CLIPModel, there)).eval()
    ours = models.load(models.CLIP(CONFIG), theirs.state_dict()).eval()
    images, ids = pictures(), text()
    expected = theirs(input_ids=ids, pixel_values=images, return_loss=True)
    logits, loss = ours(images, ids, with_loss=True)
    torch.testing.assert_close(logits, expected.logits_per_image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=1e-4)
