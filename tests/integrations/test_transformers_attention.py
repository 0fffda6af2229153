"""transformers' models with the attention "pyfused" give what they give with "sdpa"."""

# ruff: noqa: E402  (imports behind importorskip)
from itertools import pairwise

import pytest
import torch

hf = pytest.importorskip("transformers")

from helpers import assert_error_within
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import pyflash
from pyflash.integrations import transformers as integration
from pyflash.integrations.transformers.attention import attention_forward, attention_mask
from tests.integrations.transformers_models import MODELS, called, ids, logits_of, made, padded, trained

pytestmark = [pytest.mark.host, pytest.mark.filterwarnings("ignore")]
BACKENDS = ["auto", "cpu"]


@pytest.fixture(autouse=True)
def registered():
    integration.register()


def using(backend):
    return pyflash.use_backend(backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name, dtype, backend):
    model = made(name, dtype=dtype).eval()
    with torch.no_grad():
        true = called(made(name, dtype=torch.float64).eval(), name, torch.float64)
        theirs = called(model, name, dtype)
        model.set_attn_implementation("pyfused")
        with using(backend):
            ours = called(model, name, dtype)
    assert_error_within((ours,), (theirs,), (true,))


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name):
    true = trained(made(name, dtype=torch.float64), name, torch.float64)
    theirs = trained(made(name), name)
    with using("cpu"):
        ours = trained(made(name, "pyfused"), name)
    scales = (true[0].abs().sum(),) if name == "clip" else ()  # what its logit_scale's gradient is the sum of
    assert_error_within(ours, theirs, true, *scales)


WRITERS = [name for name, (_, _, writes) in MODELS.items() if writes]


def written(model, name, **more):
    torch.manual_seed(5)
    inputs = {key: x for key, x in MODELS[name][1]().items() if key != "decoder_input_ids"}
    return model.generate(**inputs, max_new_tokens=9, min_new_tokens=9, pad_token_id=0, **more)


@pytest.mark.parametrize(
    "way", ["greedy", *(pytest.param(way, marks=pytest.mark.slow) for way in ("beams", "static cache", "no cache"))]
)
@pytest.mark.parametrize("name", WRITERS)
def test_generation(name, way):
    options = {
        "greedy": {"do_sample": False},
        "beams": {"do_sample": False, "num_beams": 3},
        "static cache": {"do_sample": False, "cache_implementation": "static", "disable_compile": True},
        "no cache": {"do_sample": False, "use_cache": False},
    }[way]
    model = made(name).eval()
    theirs = written(model, name, **options)
    model.set_attn_implementation("pyfused")
    for backend in BACKENDS:
        with using(backend):
            assert torch.equal(written(model, name, **options), theirs)


def test_left_padding_changes_nothing_of_what_is_written():
    model = made("llama", "pyfused").eval()
    together = written(model, "llama", do_sample=False)[:, -9:]
    for row, mask in enumerate(padded("left")):
        alone = ids()[row, mask.bool()][None]
        assert torch.equal(
            model.generate(alone, max_new_tokens=9, min_new_tokens=9, do_sample=False)[0, -9:], together[row]
        )


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bert", "vit"])
def test_without_padding(name):
    model = made(name).eval()
    inputs = {key: x for key, x in MODELS[name][1]().items() if key != "attention_mask"}
    with torch.no_grad():
        true = logits_of(
            made(name, dtype=torch.float64).eval()(
                **{k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}
            )
        )
        theirs = logits_of(model(**inputs))
        model.set_attn_implementation("pyfused")
        assert_error_within((logits_of(model(**inputs)),), (theirs,), (true,))


def of_class(model, config, attention, dtype=torch.float32, **options):
    torch.manual_seed(0)
    built = getattr(hf, model)(getattr(hf, config)(**options))
    built.set_attn_implementation(attention)
    return built.to(dtype).eval()


SMALL = {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": 97, "intermediate_size": 48, "pad_token_id": 0,
}  # fmt: skip
EAGER_ONLY = {  # what "sdpa" cannot do, and we can
    "softcap": ("Gemma2ForCausalLM", "Gemma2Config", {"sliding_window": 4, "attn_logit_softcapping": 1.5}),
    "sinks": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", EAGER_ONLY)
def test_what_only_eager_computes(case, backend):
    model, config, options = EAGER_ONLY[case]
    mask = padded("right")[[0, 1, 1]]  # of each query a key is seen: eager's float64 has NaN else
    inputs, seen = {"input_ids": ids(), "attention_mask": mask}, mask.bool()

    def result(attention, dtype=torch.float32):
        built = of_class(model, config, attention, dtype, **SMALL, **options)
        built.set_experts_implementation("eager")  # whose products also take float64
        for parameter in (p for name, p in built.named_parameters() if "sinks" in name):
            torch.nn.init.normal_(parameter)
        logits = built(**inputs).logits[seen]
        return (logits.detach(), *torch.autograd.grad(logits.square().sum(), list(built.parameters())))

    theirs, true = result("eager"), result("eager", torch.float64)
    with using(backend):
        assert_error_within(result("pyfused"), theirs, true)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "vit"])
def test_weights_are_eagers(name):
    def weights(attention, dtype=torch.float32):
        inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in MODELS[name][1]().items()}
        if "attention_mask" in inputs:
            inputs["attention_mask"] = padded("right")
        return made(name, attention, dtype).eval()(**inputs, output_attentions=True).attentions

    with torch.no_grad():
        theirs, true, ours = weights("eager"), weights("eager", torch.float64), weights("pyfused")
    assert len(theirs) == len(ours) == 2
    assert_error_within(ours, theirs, true)


class Module(torch.nn.Module):
    is_causal = True


def qkv(batch=2, heads=4, kv_heads=2, queries=6, keys=6, dim=8):
    return (torch.randn(batch, h, n, dim) for h, n in ((heads, queries), (kv_heads, keys), (kv_heads, keys)))


def test_dropout_drops_the_weights_that_it_returns():
    q, k, v = qkv(queries=64, keys=64)
    out, weights = attention_forward(Module(), q, k, v, None, dropout=0.25, output_attentions=True)
    lower = torch.ones(64, 64).tril().bool()
    assert 0.2 < (weights[..., lower] == 0).float().mean() < 0.3
    product = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(out, product)
    assert out.is_contiguous()


@pytest.mark.parametrize("sinks", [False, True])
def test_packed_sequences_attend_as_if_alone(sinks):
    q, k, v = qkv(batch=1, queries=10, keys=10)
    offsets = torch.tensor([0, 4, 7, 10], dtype=torch.int32)
    more = {"s_aux": torch.randn(4)} if sinks else {}
    packed = {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 4, "max_length_k": 4, **more}
    alone = torch.cat(
        [
            attention_forward(Module(), *(x[:, :, a:b] for x in (q, k, v)), None, **more)[0]
            for a, b in pairwise(offsets)
        ],
        dim=1,
    )
    torch.testing.assert_close(attention_forward(Module(), q, k, v, None, **packed)[0], alone)
    causal = torch.ones(10, 10).tril().bool()[None, None]
    torch.testing.assert_close(attention_forward(Module(), q, k, v, causal, **packed)[0], alone)
    del packed["max_length_q"], packed["max_length_k"]
    torch.testing.assert_close(attention_forward(Module(), q, k, v, None, **packed)[0], alone)


@pytest.mark.parametrize("queries", [1, 9])
def test_a_window_without_mask_is_kept(queries):
    q, k, v = qkv(queries=queries, keys=9)
    rows, columns = torch.arange(9)[-queries:, None], torch.arange(9)
    mask = ((columns <= rows) & (columns > rows - 3))[None, None]
    expected = attention_forward(Module(), q, k, v, mask)[0]
    torch.testing.assert_close(attention_forward(Module(), q, k, v, None, sliding_window=3)[0], expected)


@pytest.mark.parametrize("heads_of_mask", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_one_query_of_heads_that_share_keys(heads_of_mask, dtype):
    q, k, v = qkv(queries=1, keys=9)
    mask = torch.randn(2, heads_of_mask, 1, 9)
    mask = mask > 0 if dtype == torch.bool else mask
    mask = mask | (torch.arange(9) == 0) if dtype == torch.bool else mask
    k_of_each, v_of_each = (x.repeat_interleave(2, 1) for x in (k, v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k_of_each, v_of_each, mask)
    for backend in BACKENDS:
        with using(backend):
            torch.testing.assert_close(attention_forward(Module(), q, k, v, mask)[0], expected.transpose(1, 2))


MASKS = {"none": None, "bool": torch.ones(6, 9).tril(3).bool(), "added": torch.randn(6, 9)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_position_bias_is_added_and_learned(mask, is_causal):
    tensors = [*qkv(kv_heads=4, keys=9), torch.randn(1, 4, 6, 9)]
    mask = None if MASKS[mask] is None else MASKS[mask].expand(2, 1, 6, 9)

    def outcome(function, dtype=torch.float32):
        q, k, v, bias = (x.to(dtype).requires_grad_() for x in tensors)
        given = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
        out = function(Module(), q, k, v, given, is_causal=is_causal, scaling=1.0, position_bias=bias)[0]
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v, bias)))

    theirs, true = outcome(sdpa_attention_forward), outcome(sdpa_attention_forward, torch.float64)
    for backend in BACKENDS:
        with using(backend):
            assert_error_within(outcome(attention_forward), theirs, true)


REFUSED = {
    "an unknown keyword": ({"indices": torch.zeros(1)}, "the keyword indices"),
    "head_mask": ({"head_mask": torch.ones(4)}, "the keyword head_mask"),
    "a biased softcap": ({"softcap": 2.0, "position_bias": torch.zeros(1, 4, 6, 6)}, "position_bias together"),
    "two sinks": ({"s_aux": torch.zeros(4), "sinks": torch.zeros(2, 4, 6, 1)}, "s_aux together"),
    "a window both ways": ({"is_causal": False, "sliding_window": 3}, "not causal"),
    "packed batches": ({"cu_seq_lens_q": torch.tensor([0, 6]), "cu_seq_lens_k": torch.tensor([0, 6])}, "batch"),
    "half of packing": ({"cu_seq_lens_q": torch.tensor([0, 6])}, "one of cu_seq_lens_q"),
    "weights with a softcap": ({"softcap": 2.0, "output_attentions": True}, "output_attentions with softcap"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    keywords, words = REFUSED[case]
    with pytest.raises(NotImplementedError, match=words):
        attention_forward(Module(), *qkv(), None, **keywords)


def test_what_says_nothing_to_attention_passes():
    q, k, v = qkv()
    plain = attention_forward(Module(), q, k, v, None)[0]
    more = {"position_ids": torch.arange(6), "use_cache": True, "indices": None, "cache_position": torch.arange(6)}
    assert torch.equal(attention_forward(Module(), q, k, v, None, **more)[0], plain)


def test_a_model_that_computes_attention_itself_is_refused():
    config = hf.BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=97)
    model = hf.BloomForCausalLM(config)
    model.config._attn_implementation = "pyfused"
    with pytest.raises(NotImplementedError, match="BloomConfig, whose model computes its attention itself"):
        model(ids())


def test_a_model_that_slices_its_masks_gets_them_always():
    arguments = {"batch_size": 1, "q_length": 5, "kv_length": 5}
    assert attention_mask(config=hf.LlamaConfig(), **arguments) is None
    assert attention_mask(config=hf.Gemma4TextConfig(), **arguments).shape == (1, 1, 5, 5)


def test_the_name_is_not_taken_for_flash_attention():
    assert "flash" not in integration.NAME
    integration.register()  # again
    assert integration.NAME in hf.AttentionInterface().valid_keys()
