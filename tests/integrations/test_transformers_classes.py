"""pyflash.replace on models of transformers: the same numbers, names and state, and theirs again."""

import copy
import pickle

import pytest
import torch

pytest.importorskip("transformers")

from helpers import assert_error_within
from transformers import activations
from transformers.models.bert.modeling_bert import BertConfig, BertIntermediate, BertOutput
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPVisionConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralConfig, MistralMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5Config, T5DenseActDense, T5DenseGatedActDense, T5LayerNorm
from transformers.pytorch_utils import Conv1D

import pyflash
from pyflash.integrations import transformers as integration
from pyflash.nn._twins import ORIGINALS
from tests.integrations.transformers_models import MODELS, called, made, trained

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("attention", ["sdpa", "pyfused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name, dtype, attention):
    integration.register()
    with torch.no_grad():
        true = called(made(name, dtype=torch.float64).eval(), name, torch.float64)
        theirs = called(made(name, dtype=dtype).eval(), name, dtype)
        ours = pyflash.replace(made(name, attention, dtype).eval())
        for backend in ("auto", "cpu"):
            with pyflash.use_backend(backend):
                assert_error_within((called(ours, name, dtype),), (theirs,), (true,))


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    integration.register()
    true = trained(made(name, dtype=torch.float64), name, torch.float64)
    theirs = trained(made(name), name)
    with pyflash.use_backend("cpu"):
        ours = trained(pyflash.replace(made(name, "pyfused")), name)
    scales = (true[0].abs().sum(),) if name == "clip" else ()  # what its logit_scale's gradient is the sum of
    assert_error_within(ours, theirs, true, *scales)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_is_stays(name):
    model = made(name)
    classes = [type(m) for m in model.modules()]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    state = {key: x.clone() for key, x in model.state_dict().items()}
    assert pyflash.replace(model) is model
    assert list(model.state_dict()) == list(state)
    assert all(model.get_parameter(key) is p for key, p in parameters.items())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(m) for m in copied.modules()] == [type(m) for m in model.modules()]
    model.load_state_dict(state)
    pyflash.restore(model)
    assert [type(m) for m in model.modules()] == classes


def test_the_report_says_what_stayed():
    rows = {row.name: row for row in pyflash.report(pyflash.replace(made("llama"))).rows}
    norm = rows["model.layers.0.input_layernorm"]
    assert norm.before == "transformers.models.llama.modeling_llama.LlamaRMSNorm"
    assert norm.now == "pyflash.integrations.transformers.LlamaRMSNorm" and norm.backend == "cpu"
    assert rows["model.layers.0.mlp"].now == "pyflash.integrations.transformers.LlamaMLP"
    left = {row.before.rpartition(".")[2]: row.reason for row in rows.values() if row.now == row.before}
    assert left == {"LlamaRotaryEmbedding": "a class of its own"}
    model = made("clip")
    left = {
        row.before.rpartition(".")[2] for row in pyflash.report(pyflash.replace(model)).rows if row.now == row.before
    }
    assert left == {"QuickGELUActivation"}


def test_training_with_dropout_goes_on():
    model = pyflash.replace(made("bert", without_dropout=False).train())
    torch.manual_seed(1)
    first = called(model, "bert")
    torch.manual_seed(1)
    assert torch.equal(called(model, "bert"), first)
    assert not torch.equal(called(model, "bert"), first)
    first.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_one_graph(name):
    integration.register()
    model = pyflash.replace(made(name, "pyfused").eval())
    torch._dynamo.reset()
    with torch.no_grad():
        expected = called(model, name)
        assert torch.equal(called(torch.compile(model, fullgraph=True, backend="aot_eager"), name), expected)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_checkpointed_layers_are_computed_again(name):
    integration.register()
    model = pyflash.replace(made(name, "pyfused").train())
    expected = trained(model, name)
    model.gradient_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(trained(model, name), expected))


@pytest.mark.parametrize("name", ["llama", "t5 gated", "bert"])
def test_under_autocast_the_types_are_theirs(name):
    integration.register()
    types = []
    for model in (made(name), pyflash.replace(made(name, "pyfused"))):
        found = {}
        for key, module in model.named_modules():
            module.register_forward_hook(
                lambda _, __, y, key=key, found=found: found.update({key: getattr(y, "dtype", None)})
            )
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            called(model.eval(), name)
        types.append(found)
    assert types[0] == types[1]


T5 = {"d_model": 16, "d_ff": 24, "dropout_rate": 0.0}
MODULES = {  # name: how it is made, the shapes of what it is called with
    "GELUActivation": (activations.GELUActivation, [(5, 16)]),
    "GELUActivation in Python": (lambda: activations.GELUActivation(use_gelu_python=True), [(5, 16)]),
    "NewGELUActivation": (activations.NewGELUActivation, [(5, 16)]),
    "AccurateGELUActivation": (activations.AccurateGELUActivation, [(5, 16)]),
    "SiLUActivation": (activations.SiLUActivation, [(5, 16)]),
    "MishActivation": (activations.MishActivation, [(5, 16)]),
    "Conv1D": (lambda: Conv1D(24, 16), [(2, 5, 16)]),
    "LlamaRMSNorm": (lambda: LlamaRMSNorm(16), [(2, 5, 16)]),
    "Qwen2RMSNorm": (lambda: Qwen2RMSNorm(16), [(2, 5, 16)]),
    "T5LayerNorm": (lambda: T5LayerNorm(16), [(2, 5, 16)]),
    "Gemma2RMSNorm": (lambda: Gemma2RMSNorm(16), [(2, 5, 16)]),
    "MistralMLP": (lambda: MistralMLP(MistralConfig(hidden_size=16, intermediate_size=24)), [(2, 5, 16)]),
    "T5DenseActDense": (lambda: T5DenseActDense(T5Config(**T5)), [(2, 5, 16)]),
    "T5DenseGatedActDense": (
        lambda: T5DenseGatedActDense(T5Config(**T5, feed_forward_proj="gated-gelu")),
        [(2, 5, 16)],
    ),
    "GPT2MLP": (lambda: GPT2MLP(24, GPT2Config(n_embd=16, resid_pdrop=0.0)), [(2, 5, 16)]),
    "BertIntermediate": (
        lambda: BertIntermediate(BertConfig(hidden_size=16, intermediate_size=24)),
        [(2, 5, 16)],
    ),
    "BertOutput": (
        lambda: BertOutput(BertConfig(hidden_size=16, intermediate_size=24, hidden_dropout_prob=0.0)),
        [(2, 5, 24), (2, 5, 16)],
    ),
    "CLIPMLP": (
        lambda: CLIPMLP(
            CLIPVisionConfig(hidden_size=16, num_attention_heads=4, intermediate_size=24, hidden_act="gelu")
        ),
        [(2, 5, 16)],
    ),
    "CLIPMLP quick_gelu": (
        lambda: CLIPMLP(CLIPVisionConfig(hidden_size=16, num_attention_heads=4, intermediate_size=24)),
        [(2, 5, 16)],
    ),
}
TYPES = {  # of the module, of what it is called with
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float64": (torch.float64, torch.float64),
}
MIXED = {"half input": (torch.float32, torch.bfloat16), "half weight": (torch.bfloat16, torch.float32)}
NORMS = [name for name in MODULES if name.endswith("Norm")]


def outcome(module, inputs, dtype):
    module = copy.deepcopy(module).to(dtype[0])
    inputs = [x.to(dtype[1]).requires_grad_() for x in inputs]
    y = module(*inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (y.detach(), *torch.autograd.grad(y, [*inputs, *module.parameters()], dy.to(y.dtype)))


@pytest.mark.parametrize("backend", ["auto", "cpu"])
@pytest.mark.parametrize(
    "name, dtype",
    [(name, dtype) for name in MODULES for dtype in TYPES] + [(name, dtype) for name in NORMS for dtype in MIXED],
)
def test_modules(name, dtype, backend):
    build, shapes = MODULES[name]
    dtype = {**TYPES, **MIXED}[dtype]
    theirs, inputs = build(), [torch.randn(shape).to(dtype[1]) for shape in shapes]
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.5)
    theirs.to(dtype[0])  # the truth has the rounded weights
    true = outcome(theirs, inputs, (torch.float64, torch.float64))
    expected = outcome(theirs, inputs, dtype)
    ours = pyflash.replace(copy.deepcopy(theirs))
    assert type(ours) in ORIGINALS and type(ours).__name__ == type(theirs).__name__
    with pyflash.use_backend(backend):
        assert_error_within(outcome(ours, inputs, dtype), expected, true)
