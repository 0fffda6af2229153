"""Models of transformers from small configurations, at random weights, and what they are called with."""

import torch
import transformers as hf

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
DECODER = {
    **SMALL,
    "vocab_size": 97,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
ROWS, LENGTH = 3, 11


def ids(length=LENGTH):
    return torch.randint(3, 97, (ROWS, length), generator=torch.Generator().manual_seed(1))


def padded(side, length=LENGTH):
    """One row is whole, two lack tokens on that side."""
    mask = torch.ones(ROWS, length, dtype=torch.long)
    for row, missing in ((1, 2), (2, 5)):
        mask[row, slice(0, missing) if side == "left" else slice(length - missing, None)] = 0
    return mask


def _text(side):
    return lambda: {"input_ids": ids(), "attention_mask": padded(side)}


def _pixels(size=16):
    return {"pixel_values": torch.randn(ROWS, 3, size, size, generator=torch.Generator().manual_seed(2))}


def _sequence_to_sequence():
    return {"input_ids": ids(), "attention_mask": padded("right"), "decoder_input_ids": ids(7)}


def _clip():
    return {**_text("right")(), **_pixels()}


def _whisper():
    features = torch.randn(ROWS, 80, 24, generator=torch.Generator().manual_seed(3))
    return {"input_features": features, "decoder_input_ids": ids(7)}


def _gpt2(**more):
    size = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 97}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**size, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more))


def _t5(feed_forward, **more):
    size = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": 97}
    return hf.T5ForConditionalGeneration(
        hf.T5Config(**size, feed_forward_proj=feed_forward, decoder_start_token_id=0, **more)
    )


def _clip_model(**more):
    vision = {**SMALL, "intermediate_size": 48, "image_size": 16, "patch_size": 8}
    text = {**SMALL, "intermediate_size": 48, "vocab_size": 97, "max_position_embeddings": 32, "eos_token_id": 2}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, **more))


def _whisper_model(**more):
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
    size = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 12, "vocab_size": 97}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**heads, **size, **special, **more))


def _of(model, config, **fixed):
    return lambda **more: getattr(hf, model)(getattr(hf, config)(**{**fixed, **more}))


# name: how it is made, what it is called with, whether it writes text
MODELS = {
    "gpt2": (_gpt2, _text("left"), True),
    "llama": (_of("LlamaForCausalLM", "LlamaConfig", **DECODER), _text("left"), True),
    "mistral": (_of("MistralForCausalLM", "MistralConfig", **DECODER, sliding_window=4), _text("left"), True),
    "qwen3": (_of("Qwen3ForCausalLM", "Qwen3Config", **DECODER), _text("left"), True),
    "bert": (
        _of("BertForMaskedLM", "BertConfig", **SMALL, vocab_size=97, intermediate_size=48),
        _text("right"),
        False,
    ),
    "t5": (lambda **more: _t5("relu", **more), _sequence_to_sequence, True),
    "t5 gated": (lambda **more: _t5("gated-gelu", **more), _sequence_to_sequence, True),
    "vit": (
        _of("ViTForImageClassification", "ViTConfig", **SMALL, intermediate_size=48, image_size=16, patch_size=8),
        _pixels,
        False,
    ),
    "clip": (_clip_model, _clip, False),
    "whisper": (_whisper_model, _whisper, True),
}
NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5": {"dropout_rate": 0.0},
    "t5 gated": {"dropout_rate": 0.0},
    "whisper": {"dropout": 0.0},
}


def made(name, attention="sdpa", dtype=torch.float32, without_dropout=True, **more):
    torch.manual_seed(0)
    build = MODELS[name][0]
    options = NO_DROPOUT.get(name, {}) if without_dropout else {}
    model = build(**options, **more)
    model.set_attn_implementation(attention)
    return model.to(dtype)


def logits_of(outputs):
    return outputs.logits_per_image if hasattr(outputs, "logits_per_image") else outputs.logits


def called(model, name, of=torch.float32):
    """Logits of the model for what it is called with."""
    inputs = MODELS[name][1]()
    inputs = {key: x.to(of) if x.is_floating_point() else x for key, x in inputs.items()}
    return logits_of(model(**inputs))


def trained(model, name, of=torch.float32):
    """Logits, and the gradient of each parameter for one fixed gradient of theirs."""
    model.zero_grad(set_to_none=True)
    logits = called(model, name, of)
    generator = torch.Generator().manual_seed(4)
    logits.backward(torch.randn(logits.shape, generator=generator, dtype=torch.float64).to(logits.dtype))
    return (logits.detach(), *(p.grad for p in model.parameters()))
