"""Whole public architectures with random weights: a few layers of the true width, after `replace`, and with `overrides()`.

Needs transformers (and timm for Mixer, which needs torchvision): pip install 'pyflash[models]'. Nothing is downloaded: a
model is made from a configuration. Dropout is off, so that outputs can be compared; a training step includes AdamW.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.known import Gap, Story
from benchmarks.operation import Case, Operation, Provider

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LAYERS = 2
WORDS = 1000  # of a vocabulary: its table is memory, which is no question here
TOKENS = 128
IMAGE = 224


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int


def _gpt2(hf):
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return hf.GPT2Model(hf.GPT2Config(vocab_size=WORDS, n_layer=LAYERS, **none))


def _llama(hf):
    return hf.LlamaModel(
        hf.LlamaConfig(
            vocab_size=WORDS, hidden_size=1024, intermediate_size=2816, num_hidden_layers=LAYERS,
            num_attention_heads=16, num_key_value_heads=4,
        )
    )  # fmt: skip


def _bert(hf):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return hf.BertModel(hf.BertConfig(vocab_size=WORDS, num_hidden_layers=LAYERS, **none), add_pooling_layer=False)


def _t5(hf):
    return hf.T5EncoderModel(
        hf.T5Config(vocab_size=WORDS, d_model=768, d_ff=3072, num_heads=12, num_layers=LAYERS, dropout_rate=0.0)
    )


def _vit(hf):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return hf.ViTModel(hf.ViTConfig(num_hidden_layers=LAYERS, **none), add_pooling_layer=False)


def _clip(hf):
    return hf.CLIPVisionModel(
        hf.CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=LAYERS)
    )


def _whisper(hf):
    none = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    config = hf.WhisperConfig(
        vocab_size=WORDS, d_model=512, encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, max_source_positions=500,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, **none,
    )  # fmt: skip
    return hf.WhisperModel(config)


def _swin(hf):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0}
    return hf.SwinModel(hf.SwinConfig(depths=[2, 2], num_heads=[3, 6], **none), add_pooling_layer=False)


def _resnet(hf):
    return hf.ResNetModel(hf.ResNetConfig(depths=[1, 1, 1, 1]))


def _convnext(hf):
    return hf.ConvNextModel(hf.ConvNextConfig(depths=[1, 1, 2, 1], drop_path_rate=0.0))


def _mobilenet(hf):
    return hf.MobileNetV2Model(hf.MobileNetV2Config(tf_padding=False), add_pooling_layer=False)


def _of_torch(name: str):
    """A model of ours, written in torch.nn: whole, since it is."""

    def build(_):
        import pyflash.models

        return getattr(pyflash.models, name)(nn=nn)

    return build


def _timm(name: str, **options):
    def build(_):
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return build


TEXT, PICTURE, SOUND = "text", "picture", "sound"
MODELS = {  # name -> (its maker, what it reads, where its sizes come from)
    "GPT-2": (_gpt2, TEXT, "GPT-2 small, 2 of 12 layers"),
    "Llama": (_llama, TEXT, "Llama's layer at width 1024, 4 of 16 heads for keys"),
    "BERT": (_bert, TEXT, "BERT base, 2 of 12 layers"),
    "T5": (_t5, TEXT, "T5 base's encoder, 2 of 12 layers"),
    "ViT": (_vit, PICTURE, "ViT B/16, 2 of 12 layers"),
    "CLIP": (_clip, PICTURE, "CLIP's B/32 picture tower, 2 of 12 layers"),
    "Whisper": (_whisper, SOUND, "Whisper base, 2 of 6 layers each, 10 seconds"),
    "Swin": (_swin, PICTURE, "Swin tiny, 2 of 4 stages"),
    "ResNet": (_resnet, PICTURE, "ResNet-50, a block a stage"),
    "ResNet-18": (_of_torch("resnet18"), PICTURE, "ResNet-18, whole"),
    "ResNet-50": (_of_torch("resnet50"), PICTURE, "ResNet-50, whole"),
    "MobileNetV2": (_mobilenet, PICTURE, "MobileNetV2, whole"),
    "ConvNeXt": (_convnext, PICTURE, "ConvNeXt tiny, 5 of 18 blocks"),
    "Mixer": (_timm("mixer_b16_224", num_blocks=LAYERS), PICTURE, "Mixer B/16, 2 of 12 layers"),
    "ViT of timm": (_timm("vit_base_patch16_224", depth=LAYERS), PICTURE, "ViT B/16, 2 of 12 layers"),
}


class Whole(nn.Module):
    """The model, its answer as one tensor."""

    def __init__(self, model: nn.Module, reads: str):
        super().__init__()
        self.model, self.reads = model, reads

    def forward(self, *inputs):
        if self.reads == TEXT:
            found = self.model(input_ids=inputs[0])
        elif self.reads == SOUND:
            found = self.model(input_features=inputs[0], decoder_input_ids=inputs[1])
        else:
            found = self.model(inputs[0])
        return found if isinstance(found, torch.Tensor) else found.last_hidden_state


def module(case: Case) -> nn.Module:
    make, reads, _ = MODELS[case.shape.name]
    if "timm" in make.__qualname__:
        hf = None
    else:
        import transformers as hf

        hf.logging.set_verbosity_error()
    whole = Whole(make(hf), reads)
    if "training" in case.modes:
        freeze_unused(whole, case)
    return whole


def freeze_unused(whole: Whole, case: Case) -> None:
    """Parameters that this answer does not depend on (a pooler's, say) have no gradient to ask for."""
    one = inputs(Case(case.name, Shape(case.shape.name, 2), case.modes))
    whole.train()(*one).sum().backward()
    for parameter in whole.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    reads, batch = MODELS[case.shape.name][1], case.shape.batch
    words = torch.randint(3, WORDS, (batch, TOKENS))
    if reads == TEXT:
        return (words,)
    if reads == SOUND:
        return torch.randn(batch, 80, 1000), words[:, :32]
    return (torch.randn(batch, 3, IMAGE, IMAGE),)


def ours(case: Case) -> nn.Module:
    import pyflash

    return pyflash.replace(module(case))


def _attention(q, k, v, dropout_p=0.0, is_causal=False, **_) -> float:
    """From shapes; a causal mask leaves half of the products."""
    return sdpa_flop_count(q, k, v) / (2 if is_causal else 1)


def _attention_backward(dout, q, k, v, out, lse, dropout_p=0.0, is_causal=False, **_) -> float:
    return sdpa_backward_flop_count(dout, q, k, v) / (2 if is_causal else 1)


CPU_ATTENTION = {  # which torch's counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@lru_cache(maxsize=2)
def counted(case: Case, mode: str) -> float:
    """FLOPs of the products and convolutions of one call of torch's model, as torch's own counter finds them."""
    if mode == "backward":
        return counted(case, "training") - counted(case, "forward")
    whole, one = module(case), inputs(case)
    with (
        FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter,
        torch.set_grad_enabled(mode != "forward"),
    ):
        out = whole.train(mode != "forward")(*one)
        if mode != "forward":
            out.sum().backward()
    return float(counter.get_total_flops())


class Overridden(nn.Module):
    def __init__(self, whole: nn.Module):
        super().__init__()
        self.whole = whole

    def forward(self, *inputs):
        import pyflash

        with pyflash.overrides():
            return self.whole(*inputs)


CASES = tuple(
    Case(
        f"{name} B{batch}{' step' * (mode == 'training')}", Shape(name, batch), (mode,), model=origin,
        quick=name in ("GPT-2", "BERT") and batch == 1, optimizer=mode == "training",
    )
    for name, (_, _, origin) in MODELS.items()
    for batch, mode in ((1, "forward"), (8, "forward"), (8, "training"))
)  # fmt: skip

STORY = Story(
    limit="The FLOPs of their products; in inference at batch 1, everything between them.",
    elsewhere="Hugging Face's modules call torch.nn's Linear, LayerNorm and scaled_dot_product_attention; what else they"
    " compute is the same code on both sides.",
    gaps=(Gap("", "what `auto` gives to torch is torch's speed; the rest is code that replace does not reach"),),
)

OPERATION = Operation(
    name="models",
    cases=CASES,
    inputs=inputs,
    torch=module,
    pyflash=ours,
    flops=counted,
    bytes=lambda case, mode: 0.0,  # each model reads its weights and more; beside the FLOPs it is little
    providers=(
        Provider("torch", "torch"),
        Provider("torch.compile", "torch", compiled=True),
        Provider("pyflash", "pyflash"),
        Provider("pyflash+overrides", lambda case: Overridden(ours(case))),
    ),
    outputs_only=True,
)
