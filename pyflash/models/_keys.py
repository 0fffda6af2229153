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
    "GPT2LMHeadModel",
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
    "LlamaForCausalLM",
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

SAME = KeyTable("its namesake")

TABLES: dict[tuple[str, str], tuple[KeyTable, ...]] = {
    ("GPT", "transformers"): (GPT2, LLAMA),
    ("ResNet", "torchvision"): (SAME,),
    ("ConvNeXt", "torchvision"): (SAME,),
}
