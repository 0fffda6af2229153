"""Which keys of other libraries' state dicts our models' weights are: a table a model.

On the left a key of ours, `*` for the number of a block; on the right theirs. Several are put one below the other; a
Transposed is stored [in, out]. A key without a row has the same name in both.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Transposed:
    key: str


Source = str | tuple[str, ...] | Transposed


@dataclass(frozen=True)
class KeyTable:
    name: str  # of the class there
    rows: dict[str, Source] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # theirs that carry no weight, or may be there


def both(ours: str, theirs: str, *, of=lambda key: key) -> dict[str, Source]:
    """The rows of a weight and a bias."""
    return {f"{ours}.{kind}": of(f"{theirs}.{kind}") for kind in ("weight", "bias")}


def rows_below(ours: str, *theirs: str) -> dict[str, Source]:
    """The rows of a weight and a bias that are several modules there."""
    return {f"{ours}.{kind}": tuple(f"{their}.{kind}" for their in theirs) for kind in ("weight", "bias")}


_H = "transformer.h.*"
GPT2 = KeyTable(
    "transformers' GPT2LMHeadModel",
    {
        "tokens.weight": "transformer.wte.weight",
        "positions.weight": "transformer.wpe.weight",
        **both("blocks.*.norm1", f"{_H}.ln_1"),
        "blocks.*.attention.qkv.weight": Transposed(f"{_H}.attn.c_attn.weight"),
        "blocks.*.attention.qkv.bias": f"{_H}.attn.c_attn.bias",
        "blocks.*.attention.out.weight": Transposed(f"{_H}.attn.c_proj.weight"),
        "blocks.*.attention.out.bias": f"{_H}.attn.c_proj.bias",
        **both("blocks.*.norm2", f"{_H}.ln_2"),
        "blocks.*.feed_forward.up.weight": Transposed(f"{_H}.mlp.c_fc.weight"),
        "blocks.*.feed_forward.up.bias": f"{_H}.mlp.c_fc.bias",
        "blocks.*.feed_forward.down.weight": Transposed(f"{_H}.mlp.c_proj.weight"),
        "blocks.*.feed_forward.down.bias": f"{_H}.mlp.c_proj.bias",
        **both("norm", "transformer.ln_f"),
        "head.weight": "lm_head.weight",
    },
    ignored=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),  # masks, in older checkpoints
)

_L = "model.layers.*"
LLAMA = KeyTable(
    "transformers' LlamaForCausalLM",
    {
        "tokens.weight": "model.embed_tokens.weight",
        "blocks.*.norm1.weight": f"{_L}.input_layernorm.weight",
        **rows_below("blocks.*.attention.qkv", *(f"{_L}.self_attn.{x}_proj" for x in "qkv")),
        **both("blocks.*.attention.out", f"{_L}.self_attn.o_proj"),
        "blocks.*.norm2.weight": f"{_L}.post_attention_layernorm.weight",
        **rows_below("blocks.*.feed_forward.up", f"{_L}.mlp.gate_proj", f"{_L}.mlp.up_proj"),
        **both("blocks.*.feed_forward.down", f"{_L}.mlp.down_proj"),
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    ignored=("*.rotary_emb.inv_freq",),
)

_E = "encoder.layers.*"


def encoder_rows(theirs: str, parts: dict[str, str | tuple[str, ...]], ours: str = _E) -> dict[str, Source]:
    """Of an nn.TransformerEncoder's layers: `parts` says what its modules are called below `theirs`."""
    rows: dict[str, Source] = {}
    for our, their in parts.items():
        names = (their,) if isinstance(their, str) else their
        for kind in ("weight", "bias"):
            key = f"{ours}.{our}_{kind}" if our.endswith("in_proj") else f"{ours}.{our}.{kind}"
            keys = tuple(f"{theirs}.{name}" + (kind if name.endswith("_") else f".{kind}") for name in names)
            rows[key] = keys if len(keys) > 1 else keys[0]
    return rows


VIT_OF_TRANSFORMERS = KeyTable(
    "transformers' ViTForImageClassification",
    {
        "token": "vit.embeddings.cls_token",
        "positions": "vit.embeddings.position_embeddings",
        **both("patches", "vit.embeddings.patch_embeddings.projection"),
        **encoder_rows(
            "vit.layers.*",
            {
                "self_attn.in_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                "self_attn.out_proj": "attention.o_proj",
                "linear1": "mlp.fc1",
                "linear2": "mlp.fc2",
                "norm1": "layernorm_before",
                "norm2": "layernorm_after",
            },
        ),
        **both("norm", "vit.layernorm"),
        **both("head", "classifier"),
    },
)
VIT_OF_TRANSFORMERS_4 = KeyTable(  # and of the checkpoints on its hub
    "transformers' ViTForImageClassification, before its version 5",
    {
        **VIT_OF_TRANSFORMERS.rows,
        **encoder_rows(
            "vit.encoder.layer.*",
            {
                "self_attn.in_proj": tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
                "self_attn.out_proj": "attention.output.dense",
                "linear1": "intermediate.dense",
                "linear2": "output.dense",
                "norm1": "layernorm_before",
                "norm2": "layernorm_after",
            },
        ),
    },
)
VIT_OF_TIMM = KeyTable(
    "timm's VisionTransformer",
    {
        "token": "cls_token",
        "positions": "pos_embed",
        **both("patches", "patch_embed.proj"),
        **encoder_rows(
            "blocks.*",
            {
                "self_attn.in_proj": "attn.qkv",
                "self_attn.out_proj": "attn.proj",
                "linear1": "mlp.fc1",
                "linear2": "mlp.fc2",
                "norm1": "norm1",
                "norm2": "norm2",
            },
        ),
    },
)
VIT_OF_TORCHVISION = KeyTable(
    "torchvision's VisionTransformer",
    {
        "token": "class_token",
        "positions": "encoder.pos_embedding",
        **both("patches", "conv_proj"),
        **encoder_rows(
            "encoder.layers.encoder_layer_*",
            {
                "self_attn.in_proj": "self_attention.in_proj_",
                "self_attn.out_proj": "self_attention.out_proj",
                "linear1": "mlp.0",
                "linear2": "mlp.3",
                "norm1": "ln_1",
                "norm2": "ln_2",
            },
        ),
        **both("norm", "encoder.ln"),
        **both("head", "heads.head"),
    },
)

_BERT: dict[str, Source] = {
    "tokens.weight": "bert.embeddings.word_embeddings.weight",
    "positions.weight": "bert.embeddings.position_embeddings.weight",
    "segments.weight": "bert.embeddings.token_type_embeddings.weight",
    **both("norm", "bert.embeddings.LayerNorm"),
    **encoder_rows(
        "bert.encoder.layer.*",
        {
            "self_attn.in_proj": tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
            "self_attn.out_proj": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm2": "output.LayerNorm",
        },
    ),
}
BERT_OF_TOKENS = KeyTable(
    "transformers' BertForMaskedLM",
    {
        **_BERT,
        **both("head.dense", "cls.predictions.transform.dense"),
        **both("head.norm", "cls.predictions.transform.LayerNorm"),
        "head.out.weight": "cls.predictions.decoder.weight",
        "head.out.bias": "cls.predictions.bias",
    },
    # the head of the next sentence, and what stands there twice
    ignored=("bert.embeddings.position_ids", "bert.pooler.*", "cls.seq_relationship.*", "cls.predictions.decoder.bias"),
)
BERT_OF_CLASSES = KeyTable(
    "transformers' BertForSequenceClassification",
    {**_BERT, **both("head.dense", "bert.pooler.dense"), **both("head.out", "classifier")},
    ignored=("bert.embeddings.position_ids",),
)


def _t5_stack(stack: str, feed_forward: int, gated: bool) -> dict[str, Source]:
    """`feed_forward` is the number of that part in a block."""
    ours, theirs = f"{stack}.blocks.*", f"{stack}.block.*.layer"
    up = f"{theirs}.{feed_forward}.DenseReluDense"
    rows: dict[str, Source] = {
        f"{stack}.distances.weight": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        f"{ours}.norm1.weight": f"{theirs}.0.layer_norm.weight",
        f"{ours}.norm_memory.weight": f"{theirs}.1.layer_norm.weight",
        f"{ours}.norm2.weight": f"{theirs}.{feed_forward}.layer_norm.weight",
        f"{ours}.feed_forward.up.weight": (f"{up}.wi_0.weight", f"{up}.wi_1.weight") if gated else f"{up}.wi.weight",
        f"{ours}.feed_forward.down.weight": f"{up}.wo.weight",
        f"{stack}.norm.weight": f"{stack}.final_layer_norm.weight",
    }
    for our, their in (("attention", "0.SelfAttention"), ("attention_memory", "1.EncDecAttention")):
        rows[f"{ours}.{our}.q.weight"] = f"{theirs}.{their}.q.weight"
        rows[f"{ours}.{our}.kv.weight"] = f"{theirs}.{their}.k.weight", f"{theirs}.{their}.v.weight"
        rows[f"{ours}.{our}.out.weight"] = f"{theirs}.{their}.o.weight"
    return rows


def _t5(gated: bool) -> KeyTable:
    return KeyTable(
        "transformers' T5ForConditionalGeneration" + (", gated" if gated else ""),
        {
            "tokens.weight": "shared.weight",
            "head.weight": "lm_head.weight",
            **_t5_stack("encoder", 1, gated),
            **_t5_stack("decoder", 2, gated),
        },
        # copies of shared.weight, and a table that the first versions had and never used
        ignored=(
            "*coder.embed_tokens.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ),
    )


_CLIP_LAYER: dict[str, str | tuple[str, ...]] = {
    "self_attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj": "self_attn.out_proj",
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
CLIP = KeyTable(
    "transformers' CLIPModel",
    {
        "text.tokens.weight": "text_model.embeddings.token_embedding.weight",
        "text.positions.weight": "text_model.embeddings.position_embedding.weight",
        **encoder_rows("text_model.encoder.layers.*", _CLIP_LAYER, f"text.{_E}"),
        **both("text.norm", "text_model.final_layer_norm"),
        "image.token": "vision_model.embeddings.class_embedding",
        "image.patches.weight": "vision_model.embeddings.patch_embedding.weight",
        "image.positions": "vision_model.embeddings.position_embedding.weight",
        **both("image.norm_before", "vision_model.pre_layrnorm"),  # so it is spelled there
        **encoder_rows("vision_model.encoder.layers.*", _CLIP_LAYER, f"image.{_E}"),
        **both("image.norm", "vision_model.post_layernorm"),
        "image_projection.weight": "visual_projection.weight",
    },
    ignored=("*.embeddings.position_ids",),
)

SAME = KeyTable("its namesake")

TABLES: dict[tuple[str, str], tuple[KeyTable, ...]] = {
    ("GPT", "transformers"): (GPT2, LLAMA),
    ("BERT", "transformers"): (BERT_OF_TOKENS, BERT_OF_CLASSES),
    ("ResNet", "torchvision"): (SAME,),
    ("T5", "transformers"): (_t5(gated=True), _t5(gated=False)),
    ("ViT", "timm"): (VIT_OF_TIMM,),
    ("ViT", "torchvision"): (VIT_OF_TORCHVISION,),
    ("ViT", "transformers"): (VIT_OF_TRANSFORMERS, VIT_OF_TRANSFORMERS_4),
    ("CLIP", "transformers"): (CLIP,),
    ("ConvNeXt", "torchvision"): (SAME,),
}
