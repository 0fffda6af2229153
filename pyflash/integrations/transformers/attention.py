"""The attention that transformers calls "pyfused", and the masks that it makes for it.

transformers takes any name with "flash" in it for FlashAttention itself, whose masks and packed inputs are others: hence "pyfused".
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

try:
    from transformers.utils.output_capturing import _active_collector
except ImportError:  # before version 5, where models hand output_attentions down
    _active_collector = None

from pyflash.functional import attention, attention_varlen, attention_weights, scaled_dot_product_attention
from pyflash.ops.core.philox import seed_for

NAME = "pyfused"

# What models hand down beside: it says nothing to attention, or what the mask says already.
_SAYS_NOTHING = frozenset(
    "cache_position deterministic logits_to_keep num_items_in_batch output_hidden_states output_router_logits past_key_values"
    " position_ids return_dict seq_idx token_type_ids use_cache".split()
)
# Their code drops queries after the mask was made, and only for "sdpa" by that name keeps them where there is none.
_SLICE_THEIR_MASKS = {"gemma4_text", "gemma4_unified_text"}


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    output_attentions: bool | None = None,
    **others,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query [batch, heads, queries, head_dim], key and value with their own number of heads.

    Args:
        attention_mask: bool (True: attend) or added, broadcastable to [batch, heads, queries, keys]. Where there is one it says
            all: causality and windows are in it.
        is_causal: of a call without mask and with more than one query; default: the module's `is_causal`, True without one.
        position_bias: added to the scores, broadcastable to theirs.
        sliding_window: the keys that a query of a causal call without mask sees, its own among them.
        s_aux, sinks: a logit for each head, or [batch, heads, queries, 1], that takes part in the softmax and has no value.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: where sequences start that are packed into a batch of one.
        output_attentions: also return the weights, after dropout; else None.
    Returns:
        out [batch, queries, heads, head_dim of value], contiguous, and the weights.
    Raises:
        NotImplementedError: a keyword that is not known here, or a combination that nothing computes.
    """
    _expect_known(others)
    output_attentions = bool(output_attentions) or _are_collected()
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    queries, keys = query.shape[2], key.shape[2]
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "is_causal": False, "softcap": softcap or 0.0}
    if attention_mask is None:
        options["is_causal"] = bool(is_causal) and queries > 1
        if sliding_window is not None and keys > sliding_window:
            _expect(is_causal, "sliding_window without mask, where attention is not causal")
            options.update(window_size=(sliding_window - 1, 0))
            options.update(causal_align="bottom_right" if queries == 1 else "top_left")
    if position_bias is not None:
        _expect(not softcap, "position_bias together with softcap")
        attention_mask = _biased(attention_mask, position_bias, query.dtype)
    sink = s_aux if sinks is None else sinks
    _expect(s_aux is None or sinks is None, "s_aux together with sinks")

    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        _expect(cu_seq_lens_q is not None and cu_seq_lens_k is not None, "one of cu_seq_lens_q and cu_seq_lens_k")
        _expect(query.shape[0] == 1, "cu_seq_lens_q with a batch of more than one")
        _expect(not output_attentions, "output_attentions of packed sequences")
        if attention_mask is None:
            longest = max_length_q, max_length_k
            out, lse = _packed(query, key, value, cu_seq_lens_q, cu_seq_lens_k, longest, options, sink is not None)
            return _finished(out, lse, sink), None
        attention_mask = _within(cu_seq_lens_q, cu_seq_lens_k, queries, keys, attention_mask)

    if output_attentions:
        _expect(
            not softcap and "window_size" not in options, "output_attentions with softcap, or a window without mask"
        )
        options["seed"] = seed_for(NAME, None, dropout, query)
    elif sink is None and not softcap and "window_size" not in options:
        return _finished(
            _plain(query, key, value, attention_mask, dropout, options["is_causal"], scaling), None, None
        ), None
    is_grouped = key.shape[1] != query.shape[1]
    out = attention(query, key, value, attention_mask, enable_gqa=is_grouped, return_lse=sink is not None, **options)
    out, lse = out if sink is not None else (out, None)
    weights = None
    if output_attentions:
        del options["softcap"]
        weights = attention_weights(query, key, attention_mask, enable_gqa=is_grouped, **options)
        weights = weights if sink is None else weights * _share(lse, sink, weights.dtype)
    return _finished(out, lse, sink), weights


def attention_mask(*, config=None, allow_is_causal_skip: bool = True, **arguments) -> Tensor | None:
    """sdpa's mask: bool [batch, 1, queries, keys], or None where `is_causal` says all there is to say.

    Raises:
        NotImplementedError: a model whose own code computes attention, which would add these bools to its scores.
    """
    if config is not None:
        _expect_asks(config)
        allow_is_causal_skip = allow_is_causal_skip and config.model_type not in _SLICE_THEIR_MASKS
    return sdpa_mask(config=config, allow_is_causal_skip=allow_is_causal_skip, **arguments)


def _are_collected() -> bool:
    """Does a hook of transformers wait for the weights? Few models hand output_attentions down to here."""
    collected: Any = None if _active_collector is None else _active_collector.get()
    return bool(collected) and any("attentions" in key for key in collected)


def _plain(query, key, value, mask, dropout, is_causal, scaling):
    """What torch's function means. A single query of each of the heads that share keys is a row of theirs: Zen 4, one thread,
    8 heads on 2, 512 keys: 57 us against 92."""
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads == kv_heads or query.shape[2] > 1:
        return scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal, scale=scaling, enable_gqa=heads != kv_heads
        )
    if mask is not None and mask.shape[-3:-2] not in ((), (1,)):
        mask = mask.unflatten(-3, (kv_heads, -1)).squeeze(-2)
    rows = query.unflatten(1, (kv_heads, -1)).squeeze(3)
    out = scaled_dot_product_attention(rows, key, value, mask, dropout, scale=scaling)
    return out.flatten(1, 2).unsqueeze(2)


def _packed(query, key, value, cu_seq_lens_q, cu_seq_lens_k, longest, options, return_lse):
    lengths = [
        int((offsets[1:] - offsets[:-1]).max()) if given is None else int(given)
        for given, offsets in zip(longest, (cu_seq_lens_q, cu_seq_lens_k))
    ]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    found = attention_varlen(q, k, v, cu_seq_lens_q, cu_seq_lens_k, *lengths, return_lse=return_lse, **options)
    out, lse = found if return_lse else (found, None)
    return out.transpose(0, 1)[None], lse if lse is None else lse[None]


def _within(cu_seq_lens_q, cu_seq_lens_k, queries, keys, mask):
    """The mask, and no key of another sequence."""
    _expect(mask.dtype == torch.bool, "cu_seq_lens_q with a mask that is added, or a position_bias")
    of_query = torch.searchsorted(cu_seq_lens_q, torch.arange(queries, device=mask.device), right=True)
    of_key = torch.searchsorted(cu_seq_lens_k, torch.arange(keys, device=mask.device), right=True)
    return mask & (of_query[:, None] == of_key)


def _biased(mask, bias, dtype):
    """One mask that is added; a row of keys none of which is to be seen sees all, as with sdpa."""
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(dtype).min) if mask.dtype == torch.bool else bias + mask


def _share(lse, sink, dtype):
    """[batch, heads, queries, 1]: how much of the softmax the keys have, beside the sink."""
    sink = sink.reshape(1, -1, 1, 1) if sink.dim() == 1 else sink
    return (lse.unsqueeze(-1) - sink).sigmoid().to(dtype)


def _finished(out, lse, sink):
    out = out if sink is None else out * _share(lse, sink, out.dtype)
    return out.transpose(1, 2).contiguous()


def _expect(condition, what: str) -> None:
    if not condition:
        raise NotImplementedError(f'{NAME}: {what}; use attn_implementation="eager" for it')


def _expect_known(others: dict[str, Any]) -> None:
    unknown = [name for name, value in others.items() if name not in _SAYS_NOTHING and value is not None]
    _expect(not unknown, f"the keyword {', '.join(unknown)}, of which this attention does not know what it asks for")


def _expect_asks(config: Any) -> None:
    """Does its model ask transformers for its attention? One that consists of several models leaves that to them."""
    modelling = sys.modules.get(type(config).__module__.replace("configuration_", "modeling_"))
    asks = (
        modelling is None or hasattr(modelling, "ALL_ATTENTION_FUNCTIONS") or bool(getattr(config, "sub_configs", None))
    )
    _expect(asks, f"{type(config).__name__}, whose model computes its attention itself")
