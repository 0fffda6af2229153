"""ViT: its twin, and the checkpoints of timm, torchvision and transformers."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import backend_params, use

import pyflash
from pyflash import models
from tests.models.model_helpers import assert_same_results, assert_twins, on_backend, seeded, stirred, trained, twins

SIZES = {"image_size": 8, "patch_size": 4, "width": 24, "depth": 2, "num_heads": 4, "num_classes": 5, "channels": 2}
CONFIGS = {
    "a token": {},
    "the mean": {"pooling": "mean", "activation": "relu", "hidden": 40, "norm_eps": 1e-12},
    "quick": {"activation": "quick_gelu"},
}


def config(name, **options):
    return models.ViTConfig(**{**SIZES, **CONFIGS[name], **options})


def pictures(batch=3):
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(0), device="cpu")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_gives_the_twins_weights(name):
    assert_twins(models.ViT, config(name))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name, backend):
    assert_same_results(models.ViT, config(name), [pictures()], backends=(backend, "torch"))


@pytest.mark.triton
@pytest.mark.parametrize("backend", backend_params("triton"))
def test_on_triton(backend):
    on_backend(backend, models.ViT, config("a token", depth=1), [pictures(2)])


def test_layers_begin_with_weights_of_their_own():
    """nn.TransformerEncoder copies one layer."""
    layers = models.ViT(config("a token")).encoder.layers
    for (key, first), (_, second) in zip(layers[0].named_parameters(), layers[1].named_parameters()):
        assert torch.equal(first, second) == (first.dim() == 1), key


def test_the_size_of_vit_b_16():
    with torch.device("meta"):
        model = models.ViT(models.ViTConfig(224, 16, 768, 12, 12))
    assert sum(p.numel() for p in model.parameters()) == 86_567_656  # as torchvision counts


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"patch_size": 3}, "patch_size is 3, expected a divisor of image_size, 8"),
        ({"num_heads": 5}, "num_heads is 5, expected a divisor of width, 24"),
        ({"pooling": "max"}, "pooling is 'max', expected one of 'token', 'mean'"),
        ({"activation": "tanh"}, "activation is 'tanh', expected one of 'gelu', 'relu', 'quick_gelu'"),
        ({"hidden": 0}, "hidden is 0, expected an integer from 1 on"),
        ({"dropout": -1}, "dropout is -1, expected a probability"),
    ],
)
def test_a_wrong_config_says_what_and_what_would_do(changed, says):
    with pytest.raises(ValueError, match=rf"pyflash\.models\.ViTConfig: {says}"):
        config("a token", **changed)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"x has shape \(3, 2, 8, 12\), expected \[N, 2, 8, 8\]"):
        models.ViT(config("a token"))(torch.randn(3, 2, 8, 12))


def test_replace_leaves_nothing_to_torch():
    theirs = twins(models.ViT, config("a token"))[1].eval()
    rows = pyflash.report(pyflash.replace(theirs)).rows
    left = {row.before for row in rows if row.now == row.before and row.before.startswith("torch.nn.")}
    assert left <= {"torch.nn.modules.container.ModuleList", "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"}


@pytest.mark.slow
def test_one_graph():
    model, x = trained(models.ViT, config("a token"))[0].eval(), pictures()
    with use("cpu"):
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


def timms():
    timm = pytest.importorskip("timm")
    return timm.models.VisionTransformer(
        img_size=8, patch_size=4, in_chans=2, num_classes=5, embed_dim=24, depth=2, num_heads=4
    )


def torchvisions():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.VisionTransformer(8, 4, 2, 4, 24, 96, num_classes=5)
    model.conv_proj = torch.nn.Conv2d(2, 24, 4, 4)  # its own is for three channels
    return model


def huggingface():
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(**options, image_size=8, patch_size=4, num_channels=2, num_labels=5, layer_norm_eps=1e-6)
    )
    model.logits = lambda x: model(x).logits
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "build"), [("timm", timms), ("torchvision", torchvisions), ("transformers", huggingface)]
)
def test_theirs(source, build):
    theirs = stirred(seeded(build)).eval()
    ours = models.load(models.ViT(config("a token")), theirs.state_dict(), source).eval()
    x = pictures()
    torch.testing.assert_close(ours(x), getattr(theirs, "logits", theirs)(x), atol=2e-5, rtol=2e-5)


def in_names_of(model, rows):
    """The state dict of ours under the names of a key table."""
    found = {}
    for key, value in model.state_dict().items():
        number = next((part for part in key.split(".") if part.isdigit()), "")
        source = rows.get(key.replace(f".{number}.", ".*.") if number else key, key)
        keys = source if isinstance(source, tuple) else (source,)
        for their, part in zip(keys, value.chunk(len(keys))):
            found[their.replace("*", number)] = part
    return found


@pytest.mark.parametrize(
    ("source", "keys"),
    [
        ("timm", ["cls_token", "blocks.1.attn.qkv.bias", "blocks.0.mlp.fc2.weight", "head.bias", "norm.weight"]),
        ("torchvision", ["encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "heads.head.weight", "conv_proj.bias"]),
        ("transformers", ["vit.layers.1.attention.k_proj.bias", "classifier.bias", "vit.layernorm.weight"]),
        ("transformers", ["vit.encoder.layer.1.attention.attention.key.bias", "vit.encoder.layer.0.output.dense.bias"]),
    ],
)  # fmt: skip
def test_key_tables(source, keys):
    """The tables of that name whose keys these are."""
    from pyflash.models._keys import TABLES

    model = stirred(seeded(models.ViT, config("a token")))
    theirs = [in_names_of(model, table.rows) for table in TABLES["ViT", source]]
    (theirs,) = (state for state in theirs if set(keys) <= set(state))
    loaded = models.load(models.ViT(config("a token")), copy.copy(theirs), source)
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
