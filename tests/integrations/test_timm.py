"""pyflash.replace on timm's models and layers: the same numbers, names and state, and theirs again."""

# ruff: noqa: E402  (imports behind importorskip)
import copy
import pickle

import pytest
import torch

timm = pytest.importorskip("timm")

from helpers import assert_error_within
from timm import layers
from timm.models import convnext, mlp_mixer, resnet, swin_transformer, vision_transformer

import pyflash
import pyflash.integrations.timm
from pyflash.nn._twins import ORIGINALS

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]

SMALL = {"num_classes": 7}
VIT = {**SMALL, "img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
MODELS = {
    "vit": lambda: vision_transformer.VisionTransformer(**VIT),
    "vit with SwiGLU": lambda: vision_transformer.VisionTransformer(
        **VIT, mlp_layer=layers.SwiGLU, norm_layer=layers.RmsNorm
    ),
    "resnet": lambda: resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 16, 16), **SMALL),
    "resnet of bottlenecks": lambda: resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), channels=(4, 4, 8, 8), **SMALL),
    "convnext": lambda: convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), **SMALL),
    "mixer": lambda: mlp_mixer.MlpMixer(img_size=32, patch_size=16, num_blocks=2, embed_dim=32, **SMALL),
    "mixer with GluMlp": lambda: mlp_mixer.MlpMixer(
        img_size=32, patch_size=16, num_blocks=2, embed_dim=32, mlp_layer=layers.GluMlp, **SMALL
    ),
    "swin": lambda: swin_transformer.SwinTransformer(
        img_size=32, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(2, 2), drop_path_rate=0.0, **SMALL
    ),
}


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    return MODELS[name]().to(dtype)


def outcome(model, size=32):
    """Outputs and gradients, in the mode and type that it has."""
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    model.zero_grad(set_to_none=True)
    y = model(x)
    y.backward(torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype))
    return (y.detach(), *(p.grad for p in model.parameters()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, training):
    size = 96 if "resnet" in name else 32  # its last norms are over few elements else, and rounding is all there is
    true = outcome(made(name, torch.float64).train(training), size)
    theirs = outcome(made(name).train(training), size)
    for backend in ("auto", "cpu"):
        ours = pyflash.replace(made(name).train(training))
        with pyflash.use_backend(backend), pyflash.overrides():
            assert_error_within(outcome(ours, size), theirs, true)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_is_stays(name):
    model = made(name)
    classes = [type(m) for m in model.modules()]
    keys, parameters = list(model.state_dict()), list(model.parameters())
    assert pyflash.replace(model) is model
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    pyflash.restore(model)
    assert [type(m) for m in model.modules()] == classes


def test_the_report_names_what_became_of_theirs():
    rows = {row.before: row.now for row in pyflash.report(pyflash.replace(made("convnext"))).rows}
    assert rows["timm.layers.norm.LayerNorm2d"] == "pyflash.integrations.timm.LayerNorm2d"
    assert rows["timm.layers.mlp.Mlp"] == "pyflash.integrations.timm.Mlp"


LAYERS = {
    "GELU": (layers.GELU, (5, 16)),
    "GELUTanh": (layers.GELUTanh, (5, 16)),
    "LayerNorm": (lambda: layers.LayerNorm(16), (2, 5, 16)),
    "LayerNorm without affine": (lambda: layers.LayerNorm(16, affine=False), (2, 5, 16)),
    "LayerNorm2d": (lambda: layers.LayerNorm2d(16), (2, 16, 5, 3)),
    "RmsNorm": (lambda: layers.RmsNorm(16), (2, 5, 16)),
    "GroupNorm": (lambda: layers.GroupNorm(16, num_groups=4), (2, 16, 5, 3)),
    "GroupNorm1": (lambda: layers.GroupNorm1(16), (2, 16, 5, 3)),
    "Mlp": (lambda: layers.Mlp(16, 24), (2, 5, 16)),
    "Mlp with a norm": (lambda: layers.Mlp(16, 24, norm_layer=layers.LayerNorm, act_layer=torch.nn.ReLU), (2, 5, 16)),
    "Mlp of convolutions": (lambda: layers.Mlp(16, 24, use_conv=True), (2, 16, 5, 3)),
    "GluMlp": (lambda: layers.GluMlp(16, 24), (2, 5, 16)),
    "GluMlp, gate first": (lambda: layers.GluMlp(16, 24, act_layer=torch.nn.SiLU, gate_last=False), (2, 5, 16)),
    "GluMlp of convolutions": (lambda: layers.GluMlp(16, 24, use_conv=True), (2, 16, 5, 3)),
    "SwiGLU": (lambda: layers.SwiGLU(16, 24), (2, 5, 16)),
    "SwiGLU of something": (lambda: layers.SwiGLU(16, 24, act_layer=layers.QuickGELU), (2, 5, 16)),
}


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, dtype, backend):
    build, shape = LAYERS[name]
    theirs, x = build(), torch.randn(shape).to(dtype)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.5)
    theirs.to(dtype)

    def layer_outcome(layer, dtype):
        layer, leaf = copy.deepcopy(layer).to(dtype), x.to(dtype).requires_grad_()
        y = layer(leaf)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        return (y.detach(), *torch.autograd.grad(y, [leaf, *layer.parameters()], dy))

    true, expected = layer_outcome(theirs, torch.float64), layer_outcome(theirs, dtype)
    ours = pyflash.replace(copy.deepcopy(theirs))
    assert type(ours) in ORIGINALS and isinstance(ours, type(theirs))
    with pyflash.use_backend(backend):
        assert_error_within(layer_outcome(ours, dtype), expected, true)


def test_a_fast_norm_is_theirs():
    norm = layers.LayerNorm(16)
    norm._fast_norm = True  # as set_fast_norm has it where the module is made
    x = torch.randn(2, 16)
    assert torch.equal(pyflash.replace(copy.deepcopy(norm))(x), norm(x))
