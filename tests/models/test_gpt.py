"""GPT: its twin, generation by cache and without, and the checkpoints of transformers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import backend_params, use

import pyflash
from pyflash import models
from pyflash.models._generation import next_token
from tests.models.model_helpers import (
    assert_same_results,
    assert_twins,
    counting,
    on_backend,
    seeded,
    stirred,
    trained,
    twins,
)

SIZES = {"vocab_size": 23, "context_length": 16, "width": 24, "depth": 2, "num_heads": 4}
CONFIGS = {
    "GPT-2": {},
    "Llama": {
        "num_kv_heads": 2, "positions": "rotary", "norm": "rms", "norm_eps": 1e-6, "activation": "silu", "gated": True,
        "hidden": 40, "bias": False, "tied_head": False,
    },
    "one key head": {"num_kv_heads": 1, "positions": "rotary", "rotary_base": 100.0},
}  # fmt: skip


def config(name, **options):
    return models.GPTConfig(**{**SIZES, **CONFIGS[name], **options})


def text(batch=3, tokens=7, seed=0):
    return torch.randint(
        SIZES["vocab_size"], (batch, tokens), generator=torch.Generator().manual_seed(seed), device="cpu"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_gives_the_twins_weights(name):
    assert_twins(models.GPT, config(name))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name, backend):
    assert_same_results(models.GPT, config(name), [text()], backends=(backend, "torch"))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients(name, backend):
    targets = text(seed=1)
    targets[0, :4] = -100
    assert_same_results(
        models.GPT, config(name), [text()], {"targets": targets}, backends=(backend,), modes=("train", "eval")
    )


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_on_triton(name, backend):
    tiny = config(name, depth=1, num_heads=2, num_kv_heads=CONFIGS[name].get("num_kv_heads") and 1)
    on_backend(backend, models.GPT, tiny, [text(2, 5)], {"targets": text(2, 5, seed=1)})


def test_the_loss_is_the_cross_entropy_of_the_logits():
    model, ids, targets = models.GPT(config("GPT-2")), text(), text(seed=1)
    logits, (none, loss) = model(ids), model(ids, targets)
    assert none is None
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_a_tied_head_is_the_embedding():
    tied, untied = models.GPT(config("GPT-2")), models.GPT(config("GPT-2", tied_head=False))
    assert tied.head.weight is tied.tokens.weight and untied.head.weight is not untied.tokens.weight
    copied = copy.deepcopy(tied)
    assert copied.head.weight is copied.tokens.weight
    replaced = pyflash.replace(models.GPT(config("GPT-2"), nn=torch.nn))
    assert replaced.head.weight is replaced.tokens.weight


def test_what_comes_later_changes_nothing():
    for name in CONFIGS:
        model, ids = trained(models.GPT, config(name))[0].eval(), text()
        other = torch.cat((ids[:, :4], text(seed=9)[:, 4:]), 1)
        torch.testing.assert_close(model(ids)[:, :4], model(other)[:, :4])
        assert not torch.allclose(model(ids)[:, 4:], model(other)[:, 4:])


def test_rotary_scores_know_distances_only():
    """Without learned positions a text says the same when something that nobody attends to stands before it."""
    model = trained(models.GPT, config("Llama"))[0].eval()
    ids = text()
    torch.testing.assert_close(model._hidden(ids, torch.arange(7) + 5), model._hidden(ids, torch.arange(7)))
    learned = trained(models.GPT, config("GPT-2"))[0].eval()
    assert not torch.allclose(learned._hidden(ids, torch.arange(7) + 5), learned._hidden(ids, torch.arange(7)))


def left_padded(ids, lengths, filler=0):
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths).unsqueeze(1)
    return ids.masked_fill(~mask, filler), mask.long()


@pytest.mark.parametrize("library", [pyflash.nn, torch.nn], ids=["pyflash", "torch"])
@pytest.mark.parametrize("name", CONFIGS)
def test_generation_by_the_cache_is_generation_without(name, library):
    model = stirred(seeded(models.GPT, config(name), nn=library)).eval()
    ids, mask = left_padded(text(), [7, 4, 1])
    greedy = model.generate(ids, 9, attention_mask=mask)
    assert greedy.shape == (3, 16) and torch.equal(greedy[:, :7], ids)
    assert torch.equal(model.generate(ids, 9, attention_mask=mask, use_cache=False), greedy)
    for options in ({"temperature": 0.7}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8}):
        drawn = [
            seeded(model.generate, ids, 9, attention_mask=mask, use_cache=use_cache, **options)
            for use_cache in (True, False)
        ]
        assert torch.equal(*drawn)
        assert not torch.equal(drawn[0], greedy)
    with torch.no_grad():  # and by hand
        for row, length in zip(greedy, [7, 4, 1]):
            written = row[7 - length :]
            assert torch.equal(model(written[None])[0, length - 1 : -1].argmax(-1), written[length:])


@pytest.mark.parametrize("name", CONFIGS)
def test_left_padding_changes_nothing(name):
    model = stirred(seeded(models.GPT, config(name))).eval()
    lengths = [7, 4, 1]
    ids, mask = left_padded(text(), lengths)
    together = model.generate(ids, 6, attention_mask=mask)
    other, _ = left_padded(text(), lengths, filler=22)
    assert torch.equal(model.generate(other, 6, attention_mask=mask.bool())[:, 7:], together[:, 7:])
    for row, length in zip(together, lengths):
        alone = model.generate(row[None, 7 - length : 7], 6)
        assert torch.equal(alone[0], row[7 - length :])


def test_the_cache_reads_each_token_once():
    model = models.GPT(config("GPT-2")).eval()
    with counting(model.blocks[0]) as seen:
        model.generate(text(), 4)
    assert [shape[1] for shape in seen] == [7, 1, 1, 1]


def test_nothing_is_written_where_nothing_is_asked_for():
    model, ids = models.GPT(config("GPT-2")).eval(), text()
    assert torch.equal(model.generate(ids, 0), ids)
    assert model.generate(ids[:, :1], 15).shape == (3, 16)


def test_sampling():
    """By frequency; and what is left out never comes."""
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    logits = p.log().expand(20000, 4)

    def frequencies(*options):
        return seeded(next_token, logits, *options).bincount(minlength=4) / 20000

    def near(found, wanted):
        torch.testing.assert_close(found, torch.tensor(wanted), atol=0.02, rtol=0)  # five deviations of the largest

    near(frequencies(1.0, None, None), p.tolist())
    near(frequencies(0.5, None, None), (p**2 / (p**2).sum()).tolist())
    near(frequencies(1.0, 2, None), [0, 4 / 7, 0, 3 / 7])
    near(frequencies(1.0, None, 0.69), [0, 4 / 7, 0, 3 / 7])
    near(frequencies(1.0, None, 0.71), [0, 4 / 9, 2 / 9, 3 / 9])
    near(frequencies(1.0, 3, 0.5), [0, 4 / 7, 0, 3 / 7])
    near(frequencies(1.0, 99, 1.0), p.tolist())
    assert frequencies(0.0, None, None).tolist() == frequencies(1.0, 1, None).tolist() == [0, 1, 0, 0]
    assert frequencies(1.0, None, 1e-9).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"width": 0}, "width is 0, expected an integer from 1 on"),
        ({"depth": "2"}, "depth is '2', expected an integer"),
        ({"num_heads": 5}, "num_heads is 5, expected a divisor of width, 24"),
        ({"num_kv_heads": 3}, "num_kv_heads is 3, expected a divisor of num_heads, 4"),
        ({"num_heads": 8, "positions": "rotary"}, "num_heads is 8, expected heads of an even width"),
        ({"positions": "sines"}, "positions is 'sines', expected one of 'learned', 'rotary'"),
        ({"norm": "batch"}, "norm is 'batch', expected one of 'layer', 'rms'"),
        ({"dropout": 1.5}, "dropout is 1.5, expected a probability"),
        ({"activation": None}, "activation is None"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.GPTConfig: {says}"):
        config("GPT-2", **changed)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="nosuch"):
        models.GPT(config("GPT-2", activation="nosuch"))


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((text(), -1), {}, "max_new_tokens is -1"),
        ((text(), 10), {}, "max_new_tokens is 10 behind a prompt of 7, expected at most context_length together, 16"),
        ((text(), 1), {"temperature": -1.0}, "temperature is -1.0"),
        ((text(), 1), {"top_k": 0}, "top_k is 0"),
        ((text(), 1), {"top_p": 0.0}, "top_p is 0.0"),
        (
            (text(), 1),
            {"attention_mask": torch.ones(3, 6)},
            r"attention_mask has shape \(3, 6\), expected ids', \(3, 7\)",
        ),
        ((text(1, 3), 1), {"attention_mask": torch.tensor([[1, 1, 0]])}, "attention_mask has a 0 behind a 1"),
        ((text(1, 3), 1), {"attention_mask": torch.tensor([[1, 0, 1]])}, "attention_mask has a 0 behind a 1"),
        ((text(1, 3), 1), {"attention_mask": torch.zeros(1, 3)}, "nothing but 0"),
    ],
)
def test_generate_refuses(arguments, options, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.GPT\.generate: {says}|{says}"):
        models.GPT(config("GPT-2")).generate(*arguments, **options)


def test_a_text_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="ids has 17 tokens, expected at most context_length, 16"):
        models.GPT(config("Llama"))(text(1, 17))


@pytest.mark.parametrize("name", CONFIGS)
def test_copies_and_restore(name):
    """deepcopy, pickle, replace and back: the same numbers; functions follow the modules."""
    ours, theirs = (model.eval() for model in trained(models.GPT, config(name)))
    ids = text()
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(copied(ids), ours(ids))
    expected = theirs(ids)
    with use("cpu"):
        replaced = pyflash.replace(copy.deepcopy(theirs))
        took = [call for row in pyflash.report(replaced, example_inputs=ids).rows for call in row.took]
        assert took and {call["backend"] for call in took} == {"cpu"}
    assert torch.equal(pyflash.restore(replaced)(ids), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_replace_leaves_nothing_to_torch(name):
    rows = pyflash.report(pyflash.replace(twins(models.GPT, config(name))[1])).rows
    left = [row for row in rows if row.now == row.before and row.before.startswith("torch.nn.")]
    assert {row.before for row in left} <= {"torch.nn.modules.container.ModuleList"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_one_graph(name):
    model, ids = trained(models.GPT, config(name))[0].eval(), text()
    with use("cpu"):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(ids), model(ids))
        torch.testing.assert_close(compiled(ids, text(seed=1))[1], model(ids, text(seed=1))[1])


def huggingface(name):
    transformers = pytest.importorskip("transformers")
    if name == "GPT-2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=23, n_positions=16, n_embd=24, n_layer=2, n_head=4)
        )
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=23, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=16, rms_norm_eps=1e-6, tie_word_embeddings=False,
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_transformers_own(name):
    theirs = stirred(huggingface(name)).eval()
    ours = models.load(models.GPT(config(name)), theirs.state_dict()).eval()
    ids = text()
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    padded, mask = left_padded(ids, [7, 4, 1])
    written = theirs.generate(
        padded, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert torch.equal(ours.generate(padded, 5, attention_mask=mask), written)
