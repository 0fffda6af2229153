"""replace, restore and report on whole models."""

import copy
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import backend_params, use
from torch.nn.utils import parametrizations, parametrize

import pyflash
import pyflash.nn as nn
from pyflash.nn._twins import ORIGINALS, TWINS
from pyflash.ops.core import backends
from tests.nn.module_helpers import BACKENDS, assert_same, option_id, quiet


class TiedLM(torch.nn.Module):
    """A language model whose output weight is its embedding's, with one block used twice."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(11, 16)
        self.block = torch.nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.same_block = self.block
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        mask = torch.nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        for block in (self.block, self.same_block):
            x = block(x, mask, is_causal=True)
        return self.head(self.norm(x))


class Plain(torch.nn.Linear):
    """A user's subclass."""


def cnn():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(36, 20), torch.nn.GELU(), torch.nn.Dropout(0.0), torch.nn.Linear(20, 3),
    )  # fmt: skip


def transformer():
    with quiet():
        return torch.nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True)


MODELS = {
    "transformer": (transformer, lambda: (torch.randn(2, 5, 16), torch.randn(2, 4, 16))),
    "tied language model": (TiedLM, lambda: (torch.randint(11, (2, 7)),)),
    "cnn": (cnn, lambda: (torch.randn(3, 1, 8, 8),)),
    "root": (lambda: torch.nn.Linear(5, 4), lambda: (torch.randn(3, 5),)),
}


class Block(torch.nn.Module):
    """torchvision's BasicBlock: one ReLU, in place, called twice."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(out)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = torch.nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or width != out:
            self.downsample = torch.nn.Sequential(
                torch.nn.Conv2d(width, out, 1, stride, bias=False), torch.nn.BatchNorm2d(out)
            )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(torch.nn.Module):
    """As torchvision writes it, narrow and of two stages."""

    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.relu = torch.nn.ReLU(inplace=True)
        self.maxpool = torch.nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = torch.nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = torch.nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.avgpool = torch.nn.AdaptiveAvgPool2d((1, 1))
        self.fc = torch.nn.Linear(16, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def classes(model):
    return [type(m) for m in model.modules()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, backend):
    """Same object, parameters, numbers and keys; an optimizer made before goes on; restored at the end."""
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    theirs, args = make(), inputs()
    ours = copy.deepcopy(theirs)
    parameters, modules = list(ours.parameters()), list(ours.modules())
    before = classes(ours)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ours, theirs)]
    assert pyflash.replace(ours) is ours
    after = classes(ours)
    assert after == [TWINS.get(cls, cls) for cls in before]  # the cnn has a Linear and a GELU to fuse
    assert all(a is b for a, b in zip(ours.parameters(), parameters))
    assert all(a is b for a, b in zip(ours.modules(), modules))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    pyflash.replace(ours)
    assert classes(ours) == after
    for _ in range(3):
        losses = []
        for model, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            with use(backend if model is ours else "torch"):
                loss = model(*args).square().mean()
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(*losses)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    copied = copy.deepcopy(ours)
    copied.load_state_dict(theirs.state_dict())
    assert pyflash.restore(copied) is copied and classes(copied) == before
    assert pyflash.restore(ours) is ours and classes(ours) == before


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_resnet_is_ours(layout, backend):
    """Outputs, gradients, running statistics and the report, in training and evaluation."""
    # Not 45x37: of 3 images of 12x10 torch 2.13's own gradient of the 1x1 weight writes beyond its memory on two threads.
    theirs, x = ResNet(), torch.randn(3, 3, 49, 41).to(memory_format=layout)
    ours = pyflash.replace(copy.deepcopy(theirs))
    for name, module in theirs.named_modules():
        if type(module) in TWINS and name not in ("layer1", "layer2"):
            assert type(ours.get_submodule(name)) is TWINS[type(module)], name
    assert_same(ours, theirs, [x], backends=(backend,))
    norms = [name for name, module in theirs.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for training in (True, False):
        ours.train(training).load_state_dict(theirs.train(training).state_dict())
        with use(backend):
            rows = {row.name: row for row in pyflash.report(ours, example_inputs=x).rows}
        theirs(x)
        torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))
        calls = Counter()
        for row in rows.values():
            for call in row.took:
                assert call["backend"] == "cpu", row
                calls[call["operation"]] += call["calls"]
        folded = sum(rows[name].reason.startswith("folded into") for name in norms)
        fused = sum(rows[name].reason.count("fused into") for name in rows if name.endswith("relu"))
        assert fused == 9 and len(norms) == 10
        assert calls["conv2d"] + calls["conv_bias_act"] == 10 and calls["relu"] == 0
        assert calls["batch_norm"] + calls["batch_norm_act"] == 10 - folded
        assert (folded == 0) == training and calls["conv_bias_act"] == folded
        assert calls["max_pool2d"] == calls["adaptive_avg_pool2d"] == calls["linear"] == 1


def test_every_linear_is_an_instance_of_ours():
    """Loops that initialise what is an nn.Linear see the projections of attention, too."""
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    torchs = torch.nn.TransformerEncoderLayer(8, 2, 16)
    ours = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    assert ours == [name for name, module in torchs.named_modules() if isinstance(module, torch.nn.Linear)]
    assert "self_attn.out_proj" in ours and isinstance(nn.MultiheadAttention(8, 2).out_proj, nn.Linear)


def test_only_exact_classes():
    model = torch.nn.Sequential(Plain(4, 4), torch.nn.LazyLinear(3), torch.nn.Linear(3, 3), torch.nn.Bilinear(3, 3, 1))
    pyflash.replace(model)
    assert classes(model)[1:] == [Plain, nn.LazyLinear, nn.Linear, torch.nn.Bilinear]
    reasons = {row.name: row.reason for row in pyflash.report(model).rows}
    assert reasons["0"] == "a subclass of torch.nn.Linear; only exact classes are replaced"
    assert reasons["3"] == "no class of ours yet"
    model[:3](torch.randn(2, 4))
    assert type(model[1]) is nn.Linear  # lazy no more


def test_a_forward_on_the_instance_is_left():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].forward = lambda x: x + 1
    pyflash.replace(model)
    assert type(model[0]) is torch.nn.Linear and torch.equal(model(torch.zeros(2)), torch.ones(2))
    assert pyflash.report(model).rows[0].reason == "its forward is set on the instance"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"only": "encoder"}, lambda n, m: n.startswith("encoder")),
        ({"only": ["encoder.layers.0", "decoder.norm"]}, lambda n, m: "encoder.layers.0" in n or n == "decoder.norm"),
        ({"only": "*.linear1"}, lambda n, m: n.endswith("linear1")),
        ({"only": "encoder", "exclude": None}, lambda n, m: n.startswith("encoder")),
        ({"only": torch.nn.LayerNorm}, lambda n, m: type(m) is torch.nn.LayerNorm),
        ({"only": [nn.LayerNorm, torch.nn.Dropout]}, lambda n, m: type(m) in (torch.nn.LayerNorm, torch.nn.Dropout)),
        ({"exclude": "decoder"}, lambda n, m: not n.startswith("decoder")),
        ({"exclude": (torch.nn.Linear, "*.norm1")}, lambda n, m: not isinstance(m, torch.nn.Linear) and "norm1" not in n),
        ({"only": "encoder", "exclude": "encoder.layers.1"}, lambda n, m: "encoder" in n and "layers.1" not in n),
    ],
    ids=option_id,
)  # fmt: skip
def test_only_and_exclude(chosen, expected):
    model = transformer()
    wanted = {n for n, m in model.named_modules() if type(m) in TWINS and expected(n, m)}
    dry = pyflash.replace(model, dry_run=True, **chosen)
    assert dry is model and not any(type(m) in ORIGINALS for m in model.modules())
    would = {row.name for row in pyflash.report(model).rows if row.reason.startswith("would become")}
    assert would == wanted
    for _ in range(2):
        pyflash.replace(model, **chosen)
        assert {n for n, m in model.named_modules() if type(m) in ORIGINALS} == wanted


def test_wrong_arguments():
    model = transformer()
    with pytest.raises(ValueError, match="exclude names 'encodr'"):
        pyflash.replace(model, exclude="encodr")
    with pytest.raises(TypeError, match="only contains 3"):
        pyflash.replace(model, only=[3])
    for argument in ("only", "exclude"):
        for module in (model, model.encoder.layers, model.encoder.norm):  # also one that can be iterated over
            with pytest.raises(TypeError, match=rf"{argument} is a module \(\w+\), expected names, globs or classes"):
                pyflash.replace(model, **{argument: module})
        with pytest.raises(TypeError, match=f"{argument} is 3, expected a name, a glob or a class"):
            pyflash.replace(model, **{argument: 3})
    assert not any(type(m) in ORIGINALS for m in model.modules())
    for function in (pyflash.replace, pyflash.restore, pyflash.report):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
            function({})


def test_counts():
    x = torch.ones(3, 4)
    with use("torch"):
        pyflash.counts(reset=True)
        pyflash.functional.relu(x)
        found = pyflash.counts()
        assert found == {("relu", "torch", "asked for"): 1}
        found.clear()
        assert pyflash.counts(reset=True) and not pyflash.counts()


# Parametrizations and hooks


class Symmetric(torch.nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


@pytest.mark.parametrize("when", ["before", "after"])
def test_parametrized_classes(when):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    x = torch.randn(3, 4)
    if when == "after":
        pyflash.replace(model)
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    expected = F.relu(F.linear(x, model[0].weight, model[0].bias))
    shared = copy.deepcopy(model)  # a copy shares the made class
    if when == "before":
        pyflash.replace(model)
        assert type(shared[0]).__bases__ == (torch.nn.Linear,)
        torch.testing.assert_close(shared(x), expected)
    assert type(model[0]).__name__ == "ParametrizedLinear" and isinstance(model[0], nn.Linear)
    assert parametrize.type_before_parametrizations(model[0]) is nn.Linear
    assert pyflash.report(model[0]).rows[0].now == "pyflash.nn.Linear"
    torch.testing.assert_close(model(x), expected)
    made = type(model[0])
    assert type(pyflash.replace(model)[0]) is made
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x), expected)
    parametrize.register_parametrization(model[0], "bias", torch.nn.Tanh())
    assert isinstance(model[0], nn.Linear)
    parametrize.remove_parametrizations(model[0], "bias", leave_parametrized=False)

    restored = pyflash.restore(copy.deepcopy(model))
    assert type(restored[0]).__bases__ == (torch.nn.Linear,)
    torch.testing.assert_close(restored(x), expected)
    parametrize.remove_parametrizations(restored[0], "weight")
    assert type(restored[0]) is torch.nn.Linear

    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), expected)
    pickle.loads(pickle.dumps(model))


@pytest.fixture
def mesh():
    """One process by itself, in a group of torch.distributed."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh

    store = distributed.HashStore()
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def served(name):
    return any(op == name and backend == "cpu" for op, backend, _ in backends.counts)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("parametrized", [False, True])
def test_classes_that_fully_shard_generates(mesh, when, parametrized):
    """FSDPLinear is a Linear to replace, report and restore, also one that was parametrized."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 4))
    if parametrized:
        parametrize.register_parametrization(model[0], "bias", torch.nn.Tanh())
    x = torch.randn(5, 8)
    expected = model(x).detach()
    if when == "before":
        pyflash.replace(model)
    for module in (model[0], model[1], model):
        fully_shard(module, mesh=mesh)
    pyflash.replace(model)
    assert isinstance(model, FSDPModule)
    assert [isinstance(m, cls) for m, cls in zip(model, (nn.Linear, nn.LayerNorm, nn.Linear))] == [True] * 3
    name = "FSDPParametrizedLinear" if parametrized else "FSDPLinear"
    assert type(model[0]).__name__ == name and isinstance(model[0], FSDPModule)
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert rows["0"].now == "pyflash.nn.Linear" and rows["0"].before == "torch.nn.Linear"
    assert "DTensor" in rows["1"].reason
    backends.counts.clear()
    with use("cpu" if not backends.MISSING["cpu"] else "torch"):
        found = model(x)
    torch.testing.assert_close(found.detach(), expected)
    assert backends.MISSING["cpu"] or (served("linear") and served("layer_norm"))
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    pyflash.restore(model)
    assert not any(isinstance(m, (nn.Linear, nn.LayerNorm)) for m in model.modules())
    assert type(model[0]).__name__ == name and isinstance(model[0], FSDPModule)
    torch.testing.assert_close(model(x).detach(), expected)


def test_the_reason_of_a_dtensor_says_so(mesh):
    from torch.distributed.tensor import distribute_tensor

    layer = pyflash.replace(torch.nn.LayerNorm(8))
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, torch.nn.Parameter(distribute_tensor(parameter.data, mesh)))
    assert "DTensor" in pyflash.report(layer).rows[0].reason
    with use("cpu"), pytest.raises(NotImplementedError, match="not DTensor"):
        layer(distribute_tensor(torch.randn(5, 8), mesh))


def bound(module, before=lambda *args: args):
    """As accelerate's hooks do (add_hook_to_module): the instance gets a forward that calls its own."""
    module._old_forward = module.forward
    module.forward = lambda *args: module._old_forward(*before(*args))


def test_a_forward_that_a_hook_keeps_changes_with_the_class():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    bound(model[0], lambda x: (2 * x,))
    x = torch.randn(3, 4)
    expected = model(x)
    pyflash.replace(model)
    assert model[0]._old_forward.__func__ is nn.Linear.forward and type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), expected)
    pyflash.restore(model)
    assert model[0]._old_forward.__func__ is torch.nn.Linear.forward
    torch.testing.assert_close(model(x), expected)
    model[0].forward = model[0].__dict__.pop("_old_forward")  # what removing the hook leaves behind
    pyflash.replace(model)
    assert type(model[0]) is nn.Linear and model[0].forward.__func__ is nn.Linear.forward


@pytest.mark.parametrize("when", ["before", "after"])
def test_disk_offload_of_accelerate(tmp_path, when):
    accelerate = pytest.importorskip("accelerate")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8), torch.nn.GELU())
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(x)
        if when == "before":
            pyflash.replace(model)
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
        pyflash.replace(model)
        assert [type(m) for m in model] == [nn.Linear, nn.LayerNorm, nn.Linear, nn.GELU]
        torch.testing.assert_close(model(x), expected)
        pyflash.restore(model)
        backends.counts.clear()
        torch.testing.assert_close(model(x), expected)
        assert not backends.counts


def test_parametrized_attention():
    """The class around it changes; its projections are computed on each access."""
    mha = torch.nn.MultiheadAttention(4, 2)
    parametrize.register_parametrization(mha, "in_proj_weight", torch.nn.Tanh())
    parametrize.register_parametrization(mha.out_proj, "weight", torch.nn.Tanh())
    x = torch.randn(3, 2, 4)
    expected = mha(x, x, x)
    pyflash.replace(mha)
    assert isinstance(mha, nn.MultiheadAttention)
    torch.testing.assert_close(mha(x, x, x), expected)


@pytest.mark.parametrize("how", ["parametrizations", "hooks"])
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_norms_of_weights(norm, how):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
    getattr(parametrizations if how == "parametrizations" else torch.nn.utils, norm)(model[0])
    x = torch.randn(3, 4)
    expected = model(x)
    pyflash.replace(model)
    assert isinstance(model[0], nn.Linear)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(pyflash.restore(model)(x), expected)
    assert isinstance(model[0], torch.nn.Linear) and not isinstance(model[0], nn.Linear)
    torch.testing.assert_close(pyflash.replace(model)(x), expected)
    if how == "hooks":
        getattr(torch.nn.utils, f"remove_{norm}")(model[0])
    else:
        parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), expected)


def test_a_sequential_fuses_linear_and_activation(monkeypatch):
    """Where both are nothing but themselves; a Sequential with nothing to fuse stays torch's."""
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 8), torch.nn.GELU("tanh"), torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(0.0)),
        torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.GLU(),
    )  # fmt: skip
    x = torch.randn(5, 8)
    expected = model(x)
    pyflash.replace(model)
    assert type(model) is nn.Sequential and type(model[2]) is torch.nn.Sequential
    assert type(model[:3]) is nn.Sequential
    fused = []
    function = pyflash.functional.linear_act
    monkeypatch.setattr(pyflash.functional, "linear_act", lambda *args: fused.append(args[3]) or function(*args))
    torch.testing.assert_close(model(x), expected)
    assert fused == ["gelu_tanh"]
    seen = []
    for module in (model[0], model[1]):
        handle = module.register_forward_hook(lambda m, i, o: seen.append(m))
        torch.testing.assert_close(model(x), expected)
        handle.remove()
    assert seen == [model[0], model[1]] and len(fused) == 1
    pyflash.restore(model)
    pyflash.replace(model, exclude=torch.nn.Linear)
    torch.testing.assert_close(model(x), expected)
    assert len(fused) == 1 and nn.Sequential()(x) is x


def test_hooks_stay():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    calls = []
    handle = model[0].register_forward_hook(lambda m, i, o: calls.append("forward") or 2 * o)
    model[1].register_full_backward_hook(lambda m, gi, go: calls.append("backward"))
    x = torch.randn(3, 4)
    expected = model(x)
    pyflash.replace(model)
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    assert calls == ["forward", "forward", "forward", "backward"]
    handle.remove()
    assert not torch.allclose(model(x), expected)


def test_functional_call_and_transforms():
    model = pyflash.replace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Tanh()))
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    x = torch.randn(5, 4)

    def call(parameters, x):
        return torch.func.functional_call(model, parameters, x)

    reference = copy.deepcopy(model)
    reference.load_state_dict(other)
    torch.testing.assert_close(call(other, x), pyflash.restore(reference)(x))
    gradients = torch.func.grad(lambda p: call(p, x).square().sum())(other)
    expected = torch.autograd.grad(reference(x).square().sum(), list(reference.parameters()))
    for a, b in zip(gradients.values(), expected):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.func.vmap(lambda x: call(other, x))(x), reference(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_replaced_after_compilation(backend):
    """The class of a module is part of what Dynamo guards on."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
    x = torch.randn(3, 4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = compiled(x)
    pyflash.replace(compiled)
    assert type(model[0]) is nn.Linear
    with use(backend):
        torch.testing.assert_close(compiled(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
