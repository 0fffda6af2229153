"""Philox4x32-10 in torch's integers: the references of operations that draw numbers. Salmon et al. 2011."""

from __future__ import annotations

import torch
import torch.fx.traceback
from torch.utils.checkpoint import CheckpointPolicy

from pyflash.kernels.dropout import threshold
from pyflash.ops.core.registry import LIBRARY

LOW = 0xFFFFFFFF


def draw_seed(like: torch.Tensor) -> torch.Tensor:
    """int64, one element, from torch's generator on the device of `like`: what every dropout mask is computed from."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return torch.ops.pyflash.draw_seed(like)
    return _draw_seed(like)


def seed_for(operation: str, seed: torch.Tensor | None, dropout_p: float, like: torch.Tensor) -> torch.Tensor | None:
    """The seed that a call was given, or one that is drawn; None where nothing is dropped. A kernel reads 8 bytes where it lies."""
    if dropout_p == 0:
        return None
    if seed is None:
        return draw_seed(like)
    if not isinstance(seed, torch.Tensor) or seed.dtype != torch.int64 or seed.numel() != 1:
        what = f"{seed.dtype} of {tuple(seed.shape)}" if isinstance(seed, torch.Tensor) else type(seed).__name__
        raise TypeError(f"pyflash.{operation}: seed is {what}, expected an int64 tensor of one element")
    if seed.device != like.device:
        raise RuntimeError(
            f"pyflash.{operation}: seed is on {seed.device} and the other tensors on {like.device}, expected one device;"
            f' seed.to("{like.device}")'
        )
    return seed


def _draw_seed(like):
    return torch.randint(2**63 - 1, (1,), device=like.device)


def _draw_saved_seed(like):
    """torch.compile splits a graph into forward and backward and computes again, in the backward, what it would rather
    not keep (under `activation_memory_budget` that may be anything): a number drawn again is another number. What lies
    in torch.fx's current metadata is that of the node made here, and a node marked so is always kept.
    """
    with torch.fx.traceback.preserve_node_meta(torch.fx.traceback.has_preserved_node_meta()):  # and put back after
        torch.fx.traceback.current_meta["recompute"] = CheckpointPolicy.MUST_SAVE
        return _draw_seed(like)


# Below Dynamo, whose graph keeps the call, the operator is what it calls: `aten.randint` with that mark.
LIBRARY.define("draw_seed(Tensor like) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.impl("draw_seed", _draw_saved_seed, "CompositeImplicitAutograd")


def philox_words(seed, counters):
    """Four int64 tensors of 32-bit words.

    Args:
        seed: int64, one element; its halves are the key.
        counters: four int64 tensors of 32-bit words, broadcastable.
    """
    key0, key1 = seed & LOW, (seed >> 32) & LOW
    c0, c1, c2, c3 = counters
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps at 2^64: the bits are right
        c0, c1 = ((product1 >> 32) & LOW) ^ c1 ^ key0, product1 & LOW
        c2, c3 = ((product0 >> 32) & LOW) ^ c3 ^ key1, product0 & LOW
        key0, key1 = (key0 + 0x9E3779B9) & LOW, (key1 + 0xBB67AE85) & LOW
    return c0, c1, c2, c3


def attention_keep(seed, batch, heads, rows, keys, dropout_p, first_head=0):
    """bool [batch, heads, rows, keys]: which probabilities dropout inside attention keeps.

    Counter (key // 4, row, first_head + batch * heads + head, 0), word key % 4; kept iff word >= threshold(p).
    """
    block = torch.arange((keys + 3) // 4, device=seed.device)
    row = torch.arange(rows, device=seed.device)[:, None]
    head = first_head + torch.arange(batch * heads, device=seed.device)[:, None, None]
    shape = (batch * heads, rows, block.numel())
    counters = [c.expand(shape) for c in (block, row, head, torch.zeros_like(block))]
    words = torch.stack(philox_words(seed, counters), -1).flatten(-2)[..., :keys]
    return (words >= threshold(dropout_p)).view(batch, heads, rows, keys)
