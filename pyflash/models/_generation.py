"""What models that write share: the next token, what a decoder reads, and prompts of different lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyflash.models._config import is_count


def expect_sampling(model: str, max_new_tokens, temperature, top_k, top_p) -> None:
    def expect(name, value, holds, wanted):
        if not holds:
            raise ValueError(f"pyflash.models.{model}.generate: {name} is {value!r}, expected {wanted}")

    expect("max_new_tokens", max_new_tokens, is_count(max_new_tokens, 0), "an integer from 0 on")
    expect("temperature", temperature, temperature >= 0, "0 (the likeliest token) or a positive number")
    expect("top_k", top_k, top_k is None or is_count(top_k), "None or an integer from 1 on")
    expect("top_p", top_p, top_p is None or 0 < top_p <= 1, "None or a probability above 0")


def next_token(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Drawn from logits [batch, vocabulary] by torch's generator: among the `top_k` likeliest, and of these among the
    fewest whose probabilities reach `top_p`. Holtzman et al. 2020, arXiv:1904.09751, section 3.1."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p  # of a token: what the likelier ones amount to
        before[:, 0] = 0
        ordered = ordered.masked_fill(before >= top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, order, ordered)
    return torch.multinomial(logits.softmax(-1), 1).squeeze(-1)


def continued(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    count: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    end: int | None = None,
    filler: int = 0,
) -> Tensor:
    """[batch, count]: `logits` give the first token, `step` the logits behind each next one. A text in which `end` was
    written goes on with `filler`; when all have ended there are fewer."""
    tokens: list[Tensor] = []
    ended = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    for i in range(count):
        token = next_token(logits, temperature, top_k, top_p).masked_fill(ended, filler)
        tokens.append(token)
        if end is not None:
            ended = ended | (token == end)
            if bool(ended.all()):
                break
        if i + 1 < count:
            logits = step(token)
    return torch.stack(tokens, 1) if tokens else ended.new_empty((len(ended), 0), dtype=torch.int64)


def shifted(model: str, decoder_ids: Tensor | None, targets: Tensor | None, start_token: int) -> Tensor:
    """What a decoder reads in training: decoder_ids, or start_token and the targets but the last."""
    if decoder_ids is not None:
        return decoder_ids
    if targets is None:
        raise ValueError(
            f"pyflash.models.{model}: decoder_ids is None and targets too, expected one; generate() writes itself"
        )
    ids = torch.cat((torch.full_like(targets[:, :1], start_token), targets[:, :-1]), 1)
    return ids.masked_fill(ids == -100, start_token)


def flush_left(model: str, ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prompts whose padding is on the left, moved to begin at the first column, and their lengths [batch].

    A causal model does not see what stands behind a token: so they need no mask, and their caches no gap.
    """
    batch, length = ids.shape
    if attention_mask is None:
        return ids, torch.full((batch,), length, device=ids.device)
    mask = attention_mask.bool()
    if mask.shape != ids.shape:
        raise ValueError(
            f"pyflash.models.{model}.generate: attention_mask has shape {tuple(mask.shape)}, expected ids', {tuple(ids.shape)}"
        )
    if not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError(
            f"pyflash.models.{model}.generate: attention_mask has a 0 behind a 1, or nothing but 0, expected each row to be"
            " zeros and then ones: pad prompts on the left, and write something into each"
        )
    lengths = mask.sum(1)
    columns = torch.arange(length, device=ids.device) + (length - lengths).unsqueeze(1)
    return ids.gather(1, columns % length), lengths
