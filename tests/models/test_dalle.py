"""DALLE: its twin, the tokens of pictures, and pictures by label."""

from __future__ import annotations

import pytest
import torch
from helpers import backend_params

from pyflash import models
from tests.models.model_helpers import assert_same_results, assert_twins, on_backend, seeded, stirred

CONFIG = models.DALLEConfig(8, 4, 3, 11, 16, 2, 2, channels=2, hidden=12, code_width=5)


def pictures(batch=4, seed=0):
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(seed), device="cpu")


def test_a_seed_gives_the_twins_weights():
    assert_twins(models.DALLE, CONFIG)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("labels", [None, torch.tensor([2, 0, 1, 1])], ids=["tokenizer", "gpt"])
def test_losses_and_gradients(labels, backend):
    options = {} if labels is None else {"labels": labels}
    assert_same_results(models.DALLE, CONFIG, [pictures()], options, backends=(backend,), modes=("train", "eval"))


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
def test_on_triton(backend):
    on_backend(backend, models.DALLE, CONFIG, [pictures(2)])
    on_backend(backend, models.DALLE, CONFIG, [pictures(2), torch.tensor([2, 0])])


def test_tokens_are_the_nearest_codes():
    tokenizer = stirred(models.DALLE(CONFIG)).tokenizer
    features, codes = tokenizer.encoder(pictures()).flatten(2).mT, tokenizer.codes.weight
    distances = (features.unsqueeze(2) - codes).square().sum(-1)
    assert torch.equal(tokenizer.encode(pictures()), distances.argmin(-1))
    back, loss = tokenizer(pictures())
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(pictures())), back)
    torch.testing.assert_close(loss, (back - pictures()).square().mean() + 1.25 * distances.min(-1).values.mean() / 5)


def test_squares_lie_where_they_were():
    """A change of one square changes its token and its square only."""
    tokenizer, images = stirred(models.DALLE(CONFIG)).tokenizer, pictures()
    other = images.clone()
    other[:, :, 4:, :4] = pictures(seed=1)[:, :, 4:, :4] * 3
    assert (tokenizer.encode(other) != tokenizer.encode(images)).any(0).tolist() == [False, False, True, False]
    changed = (tokenizer(other)[0] - tokenizer(images)[0]).abs().amax((0, 1)) > 1e-6
    assert changed[4:, :4].any() and not changed[:4].any() and not changed[4:, 4:].any()


def test_the_gradient_passes_the_choice_of_a_code():
    model = models.DALLE(CONFIG)
    back, _ = model(pictures())
    back.square().sum().backward()
    assert model.tokenizer.encoder[0].weight.grad.any() and model.tokenizer.codes.weight.grad is None
    model.zero_grad()
    model(pictures(), torch.tensor([0, 1, 2, 0]))[1].backward()
    assert all(p.grad is None for p in model.tokenizer.parameters())


def test_it_draws_what_it_was_shown():
    """Three pictures, a label each."""
    model, images, labels = seeded(models.DALLE, CONFIG), pictures(3).sign(), torch.arange(3)
    for arguments, steps in (((images,), 400), ((images, labels), 150)):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            model(*arguments)[1].backward()
            optimizer.step()
    model.eval()
    tokens = model.tokenizer.encode(images)
    assert len(tokens.unique()) > 3
    torch.testing.assert_close(model.generate(labels, temperature=0.0), model.tokenizer.decode(tokens))
    torch.testing.assert_close(model.generate(labels.flip(0), temperature=0.0), model.tokenizer.decode(tokens.flip(0)))
    drawn = seeded(model.generate, labels.repeat(20), temperature=50.0)
    assert drawn.shape == (60, 2, 8, 8) and len(drawn.unique(dim=0)) > 30  # no token of a label is ever decoded
    assert (model.generate(labels, top_k=1) - model.generate(labels, temperature=0.0)).abs().max() == 0


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"patch_size": 3}, "patch_size is 3, expected a divisor of image_size, 8"),
        ({"num_heads": 3}, "num_heads is 3, expected a divisor of width, 16"),
        ({"num_codes": 0}, "num_codes is 0, expected an integer from 1 on"),
        ({"commitment": -1.0}, "commitment is -1.0, expected 0 or a positive number"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.DALLEConfig: {says}"):
        models.DALLEConfig(**{**vars(CONFIG), **changed})
