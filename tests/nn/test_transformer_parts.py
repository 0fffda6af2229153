"""What is fused in Transformer layers, and that whatever stands in a part's place is called."""

import copy
from functools import partial

import pytest
import torch
from helpers import use

import pyflash
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.nn.module_helpers import MODES, pair, quiet


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("make", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_hooks_of_every_submodule_fire(make, norm_first):
    layer = make(12, 2, 20, dropout=0.0, norm_first=norm_first, activation=torch.nn.ReLU())
    x = torch.randn(3, 2, 12, requires_grad=True)
    call = layer if make is nn.TransformerEncoderLayer else lambda x: layer(x, x)
    expected = call(x)
    names = [name for name, _ in layer.named_children()]
    fired = []
    for name, child in layer.named_children():
        child.register_forward_hook(lambda m, i, o, name=name: fired.append(name))
    torch.testing.assert_close(call(x), expected)
    assert sorted(fired) == sorted(names)
    backward = []
    for name, child in layer.named_children():
        child.register_full_backward_hook(lambda m, i, o, name=name: backward.append(name))
    call(x).sum().backward()
    assert sorted(backward) == sorted(names)


def test_global_hooks_fire():
    layer = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0)
    fired = set()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: fired.add(m))
    try:
        layer(torch.randn(3, 2, 12))
    finally:
        handle.remove()
    assert fired == set(layer.modules())


def test_what_stands_in_a_place_is_called():
    """A norm, linear or attention of the user's own class; a forward set on an instance."""

    class Scaled(torch.nn.LayerNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    class Attention(torch.nn.Module):
        batch_first = False

        def forward(self, q, k, v, attn_mask=None, key_padding_mask=None, need_weights=False, is_causal=False):
            masks.append(attn_mask)
            return q * 3, None

    masks = []
    layers = []
    for n in (nn, torch.nn):
        torch.manual_seed(0)
        layer = n.TransformerEncoderLayer(12, 2, 20, dropout=0.0)
        layer.norm1 = Scaled(12)
        layer.self_attn = Attention()
        layer.linear1.forward = lambda x: torch.ones(*x.shape[:-1], 20)
        layers.append(layer)
    x = torch.randn(3, 2, 12)
    torch.testing.assert_close(layers[0](x, torch.eye(3) > 0), layers[1](x, torch.eye(3) > 0))
    assert torch.equal(*masks)  # a class that is not ours sees the float mask that torch hands it


class Adapted(torch.nn.Module):
    """As an adapter does: it holds what it stands for, shows its attributes, and triples the first tensor it returns."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args, **kwargs):
        found = self.base(*args, **kwargs)
        return (3 * found[0], *found[1:]) if isinstance(found, tuple) else 3 * found


def adapted(layer, slot, how):
    """The part of the layer named `slot` gives three times as much, by another module, a hook or a forward of its own."""
    *path, name = slot.split(".")
    owner = layer.get_submodule(".".join(path))
    part = getattr(owner, name)
    if how == "module":
        setattr(owner, name, Adapted(part))
    elif how == "hook":
        part.register_forward_hook(lambda m, i, o: (3 * o[0], *o[1:]) if isinstance(o, tuple) else 3 * o)
    else:
        triple = Adapted(copy.deepcopy(part))
        part.forward = lambda *args, **kwargs: triple(*args, **kwargs)
    return layer


SLOTS = {
    "encoder": ["self_attn", "self_attn.out_proj", "linear1", "activation", "dropout", "linear2", "dropout1", "norm1",
                "dropout2", "norm2"],
    "decoder": ["self_attn", "self_attn.out_proj", "multihead_attn", "multihead_attn.out_proj", "linear1", "activation",
                "dropout", "linear2", "dropout1", "norm1", "dropout2", "norm2", "dropout3", "norm3"],
}  # fmt: skip


@pytest.mark.parametrize("how", ["module", "hook", "forward"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "slot"), [(kind, slot) for kind, slots in SLOTS.items() for slot in slots])
def test_what_a_user_put_into_a_place_is_called_at_every_size(kind, slot, mode, how):
    """Also where torch reads the weights and calls nothing: on its fast path, and of out_proj always."""
    name = "TransformerEncoderLayer" if kind == "encoder" else "TransformerDecoderLayer"
    for batch, rows in ((2, 4), (4, 96)):  # below and above what `auto` leaves to torch
        makes = [partial(getattr(n, name), 16, 2, 32, 0.0, batch_first=True) for n in (nn, torch.nn)]
        layer, theirs = pair(*[lambda make=make: make(activation=torch.nn.GELU()) for make in makes])
        layer.train(mode == "train"), theirs.train(mode == "train")
        x = torch.randn(batch, rows, 16)

        def run(layer, x=x):
            with torch.set_grad_enabled(mode != MODES[-1]), use("auto"):
                return layer(x) if kind == "encoder" else layer(x, x)

        # The parts called one by one, by torch's own code with gradients: what torch makes of another out_proj is a
        # product with its weight, so there the factor goes into weight and bias.
        if slot.endswith("out_proj"):
            for parameter in theirs.get_submodule(slot).parameters():
                parameter.data *= 3
        else:
            adapted(theirs, slot, how)
        expected = (theirs(x.clone().requires_grad_()) if kind == "encoder" else theirs(x, x)).detach()
        before = run(layer)
        found = run(adapted(layer, slot, how)).detach()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before, found)


def test_other_parts_of_an_encoder_layer_are_honoured_at_every_size():
    """An activation other than the constructor's, a part in training, a method of its own, a subclass."""

    def activation(layer):
        layer.activation = torch.nn.SiLU()

    def training(layer):
        layer.dropout = torch.nn.Dropout(1.0)  # in training: everything is dropped

    def method(layer):
        layer._ff_block = lambda x: x

    class Subclass(nn.TransformerEncoderLayer):
        def _sa_block(self, x, *args, **kwargs):
            return 2 * x

    for make, change in (
        (nn.TransformerEncoderLayer, activation), (nn.TransformerEncoderLayer, training),
        (nn.TransformerEncoderLayer, method), (Subclass, lambda layer: None),
    ):  # fmt: skip
        layer = make(16, 2, 32, 0.0, batch_first=True).eval()
        change(layer)
        x = torch.randn(2, 4, 16)
        expected = layer(x)  # with gradients every part is called
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)


def test_a_layer_as_it_was_built_is_still_torchs_when_small():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    layer.dropout1 = torch.nn.Identity()
    before = backends.counts["multi_head_attention_forward", "torch", pyflash.auto.SMALL]
    with torch.no_grad(), use("auto"):
        layer(torch.randn(2, 4, 16))
    assert backends.counts["multi_head_attention_forward", "torch", pyflash.auto.SMALL] == before + 1


@pytest.mark.parametrize("slot", ["linear1", "self_attn.out_proj"])
def test_a_nested_tensor_is_refused_where_torch_would_skip_a_module(slot):
    layer = adapted(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), slot, "module")
    with quiet():
        x = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(5, 16)])
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"would not call the Adapted in place of a .*Linear"):
        layer(x)


def test_fused_calls(monkeypatch):
    import pyflash.functional as PF

    called = []
    for name in ("linear_act", "add_layer_norm"):
        function = getattr(PF, name)
        monkeypatch.setattr(PF, name, lambda *a, f=function, name=name: called.append(name) or f(*a))
    x = torch.randn(3, 2, 12)
    nn.TransformerEncoderLayer(12, 2, 20)(x)
    assert sorted(called) == ["add_layer_norm", "add_layer_norm", "linear_act"]
    called.clear()
    nn.TransformerDecoderLayer(12, 2, 20, activation=torch.sin, norm_first=True)(x, x)
    assert called == ["add_layer_norm"] * 2
