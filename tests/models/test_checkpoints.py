"""Key tables: what does not fit is named, with the nearest that is there, and nothing is written then."""

from __future__ import annotations

import pytest
import torch

from pyflash import models
from tests.models.model_helpers import seeded, stirred

CONFIG = models.GPTConfig(11, 8, 12, 2, 3)


def gpt2_state_dict():
    """As transformers names it, made from a model of ours: a Linear's weight is [in, out] there."""
    state = stirred(seeded(models.GPT, CONFIG)).state_dict()
    names = {
        "tokens": "transformer.wte", "positions": "transformer.wpe", "norm": "transformer.ln_f", "head": "lm_head",
        "norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj",
    }  # fmt: skip
    found = {}
    for key, value in state.items():
        module, _, kind = key.rpartition(".")
        if module.startswith("blocks."):
            _, number, part = module.split(".", 2)
            theirs = f"transformer.h.{number}.{names[part]}.{kind}"
            found[theirs] = value.t() if value.dim() == 2 else value
        else:
            found[f"{names[module]}.{kind}"] = value
    return state, found


@pytest.mark.parametrize("library", ["pyflash", "torch"])
def test_gpt2(library):
    state, theirs = gpt2_state_dict()
    options = {"nn": torch.nn} if library == "torch" else {}
    model = models.GPT(CONFIG, **options)
    assert models.load(model, theirs) is model
    assert all(map(torch.equal, model.state_dict().values(), state.values()))


@pytest.mark.parametrize("absent", ["lm_head.weight", "transformer.wte.weight"])
def test_of_a_tied_head_one_weight_is_enough(absent):
    state, theirs = gpt2_state_dict()
    del theirs[absent]
    assert torch.equal(models.load(models.GPT(CONFIG), theirs).head.weight, state["head.weight"])


def test_masks_of_older_checkpoints_are_no_weights():
    _, theirs = gpt2_state_dict()
    theirs["transformer.h.1.attn.bias"] = torch.ones(1, 1, 8, 8)
    models.load(models.GPT(CONFIG), theirs)


def renamed(theirs, key, other):
    theirs[other] = theirs.pop(key)


def untied(theirs):
    theirs["lm_head.weight"] = theirs["lm_head.weight"] + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda theirs: renamed(theirs, "transformer.h.1.ln_2.bias", "transformer.h.1.ln2.bias"),
            [
                "GPT from transformers' GPT2LMHeadModel",
                "has no 'transformer.h.1.ln_2.bias'; the nearest is 'transformer.h.1.ln2.bias'",
                "has an unknown 'transformer.h.1.ln2.bias'; the nearest is 'transformer.h.1.ln_2.bias'",
            ],
        ),
        (lambda theirs: theirs.pop("transformer.wpe.weight"), ["has no 'transformer.wpe.weight'; the nearest is"]),
        (
            lambda theirs: theirs.update({"transformer.h.2.ln_1.bias": torch.ones(12)}),
            ["has an unknown 'transformer.h.2.ln_1.bias'; the nearest is 'transformer.h."],
        ),
        (
            lambda theirs: theirs.update({"transformer.wpe.weight": torch.ones(9, 12)}),
            ["'transformer.wpe.weight' gives (9, 12), and 'positions.weight' of the model is (8, 12)"],
        ),
        (untied, ["'head.weight' and 'tokens.weight' of the model are one parameter, and differ there"]),
        (lambda theirs: theirs.clear(), ["has no 'transformer.wte.weight'", "more"]),
    ],
    ids=["renamed", "missing", "unknown", "shape", "untied", "empty"],
)
def test_what_does_not_fit_is_named(change, says):
    theirs = gpt2_state_dict()[1]
    change(theirs)
    model = models.GPT(CONFIG)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"pyflash\.models\.load: .* does not fit") as error:
        models.load(model, theirs)
    for part in says:
        assert part in str(error.value)
    assert all(map(torch.equal, model.state_dict().values(), before.values()))


def test_an_unknown_model_or_source_is_named():
    with pytest.raises(ValueError, match=r"no key table for GPT from 'timm', expected one of GPT from 'transformers'"):
        models.load(models.GPT(CONFIG), {}, source="timm")
    with pytest.raises(ValueError, match="no key table for LeNet from 'transformers'"):
        models.load(models.LeNet(), {})


def test_torchvisions_resnet_is_a_namesake():
    state = models.resnet18(3).state_dict()
    model = models.load(models.resnet18(3), state, source="torchvision")
    assert all(map(torch.equal, model.state_dict().values(), state.values()))
