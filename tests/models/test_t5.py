"""T5: its twin, distances, generation by the cache and without, and the checkpoints of transformers."""

from __future__ import annotations

import pytest
import torch
from helpers import backend_params, use

from pyflash import models
from pyflash.models.t5 import buckets
from tests.models.model_helpers import assert_same_results, assert_twins, counting, on_backend, seeded, stirred, trained

SIZES = {"vocab_size": 23, "width": 24, "depth": 2, "num_heads": 4, "num_buckets": 8, "max_distance": 12}
CONFIGS = {
    "1.1": {"hidden": 40, "head_dim": 5, "decoder_depth": 1},
    "1.0": {"gated": False, "activation": "relu", "tied_head": True},
}
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])


def config(name, **options):
    return models.T5Config(**{**SIZES, **CONFIGS[name], **options})


def text(batch=3, tokens=7, seed=0):
    return torch.randint(2, 23, (batch, tokens), generator=torch.Generator().manual_seed(seed), device="cpu")


def lively(name, **options):
    """With logits near enough to each other to write more than one word."""
    model = seeded(models.T5, config(name), **options)
    with torch.no_grad():
        model.decoder.distances.weight.mul_(5)
        model.encoder.distances.weight.mul_(5)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_gives_the_twins_weights(name):
    assert_twins(models.T5, config(name))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name, backend):
    arguments = [text(), text(tokens=5, seed=1)]
    assert_same_results(models.T5, config(name), arguments, backends=(backend,))
    options = {"attention_mask": MASK, "targets": text(tokens=5, seed=2)}
    assert_same_results(models.T5, config(name), arguments, options, backends=(backend,), modes=("train",))


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
@pytest.mark.parametrize("name", CONFIGS)
def test_on_triton(name, backend):
    arguments = [text(2, 5), text(2, 3, seed=1)]
    on_backend(
        backend,
        models.T5,
        config(name, depth=1, decoder_depth=1),
        arguments,
        {"attention_mask": MASK[:2, 2:] | MASK[:2, :5]},
    )


def test_targets_are_shifted_behind_the_start():
    model, ids, targets = models.T5(config("1.1", start_token=3)), text(), text(tokens=4, seed=1)
    targets[0, 2] = -100
    logits, loss = model(ids, targets=targets)
    written = torch.cat((torch.full((3, 1), 3), targets[:, :3].clamp(min=0)), 1)
    written[0, 3] = 3
    torch.testing.assert_close(logits, model(ids, written))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    with pytest.raises(ValueError, match="decoder_ids is None and targets too"):
        model(ids)


def test_buckets():
    """Half of them one distance each, then wider and wider, the last for all from max_distance on."""
    found = buckets(torch.arange(40), 8, 16)
    assert found.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7] + [7] * 24


def test_distances():
    model = stirred(models.T5(config("1.1")))
    to, of = model.encoder.bias(6, 0, "cpu"), model.decoder.bias(6, 0, "cpu")
    assert to.shape == of.shape == (1, 4, 6, 6)
    assert torch.equal(to[..., 1:, 1:], to[..., :-1, :-1])
    assert not torch.equal(to, to.mT)  # before and behind are told apart
    assert of[..., 0, 1:].isneginf().all() and of[..., -1, :].isfinite().all()
    torch.testing.assert_close(model.decoder.bias(2, 4, "cpu"), of[..., 4:, :])


def test_padding_changes_nothing():
    """On either side: positions are distances."""
    for name in CONFIGS:
        model, ids, written = lively(name), text(), text(tokens=4, seed=1)
        padded = model(ids, written, attention_mask=MASK)
        torch.testing.assert_close(model(ids.masked_fill(MASK == 0, 9), written, attention_mask=MASK.bool()), padded)
        for row, mask, start, found in zip(ids, MASK, written, padded):
            torch.testing.assert_close(found, model(row[None, mask == 1], start[None])[0])


@pytest.mark.parametrize("library", ["pyflash", "torch"])
@pytest.mark.parametrize("name", CONFIGS)
def test_generation_by_the_cache_is_generation_without(name, library):
    model, ids = lively(name, **({"nn": torch.nn} if library == "torch" else {})), text()
    for options in ({}, {"temperature": 1.0}, {"temperature": 1.5, "top_k": 9, "top_p": 0.9}):
        cached, whole = (
            seeded(model.generate, ids, 8, attention_mask=MASK, use_cache=use_cache, **options)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, whole) and (cached[:, 0] == 0).all() and cached.shape[1] > 3
    greedy = model.generate(ids, 8, attention_mask=MASK)
    says = model(ids, greedy[:, :-1], attention_mask=MASK).argmax(-1)
    for row, next_ones in zip(greedy, says):
        written = row[1:].tolist()
        length = written.index(1) + 1 if 1 in written else len(written)
        assert written[:length] == next_ones[:length].tolist() and not any(written[length:])


def test_the_cache_reads_each_token_once():
    model = lively("1.1")
    with counting(model.decoder.blocks[0]) as seen, counting(model.decoder.blocks[0].attention_memory.kv) as read:
        written = model.generate(text(), 4).shape[1] - 1
    assert [shape[1] for shape in seen] == [1] * written and [shape[1] for shape in read] == [7]


def test_a_text_ends():
    """Where the end is likeliest nothing follows, and nobody waits."""
    model = models.T5(config("1.1")).eval()
    with torch.no_grad():
        model.decoder.norm.weight.zero_()
    assert model.generate(text(), 9).tolist() == [[0] * 10] * 3  # all logits are alike: token 0, which ends nothing
    model.config = config("1.1", start_token=5, end_token=0)
    assert model.generate(text(), 9).tolist() == [[5, 0]] * 3


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_heads": 5}, "num_heads is 5, expected a divisor of width, 24"),
        ({"num_buckets": 6}, "num_buckets is 6, expected a multiple of 4"),
        ({"max_distance": 4}, "max_distance is 4, expected more than half of num_buckets, 4"),
        ({"end_token": 23}, "end_token is 23, expected a token below vocab_size, 23"),
        ({"decoder_depth": 0}, "decoder_depth is 0, expected an integer from 1 on"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.T5Config: {says}"):
        config("1.0", **changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_one_graph(name):
    model, arguments = trained(models.T5, config(name))[0].eval(), (text(), text(tokens=5, seed=1))
    with use("cpu"):
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend="aot_eager")(*arguments), model(*arguments)
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_own(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 23, "d_model": 24, "num_layers": 2, "num_heads": 4}
    sizes |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
    if name == "1.1":
        sizes |= {
            "d_ff": 40,
            "d_kv": 5,
            "num_decoder_layers": 1,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        }
    else:
        sizes |= {"d_ff": 96, "d_kv": 6, "feed_forward_proj": "relu"}
    theirs = seeded(transformers.T5ForConditionalGeneration, transformers.T5Config(**sizes)).eval()
    ours = models.load(models.T5(config(name)), theirs.state_dict()).eval()
    ids, written = text(), text(tokens=5, seed=1)
    expected = theirs(input_ids=ids, attention_mask=MASK, decoder_input_ids=written).logits
    torch.testing.assert_close(ours(ids, written, attention_mask=MASK), expected, atol=2e-5, rtol=2e-5)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    assert torch.equal(ours.generate(ids, 6, attention_mask=MASK), theirs.generate(ids, attention_mask=MASK, **options))
