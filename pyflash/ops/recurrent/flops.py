"""What FlopCounterMode counts for recurrent layers: the products with their weights."""

from __future__ import annotations

from math import prod


def rnn_fwd(x, h_0, c_0, weights, *_, **__):
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def rnn_step(x, h, c, weights, *_, **__):
    return rnn_fwd(x, h, c, weights)


def rnn_bwd(
    x, dy, dh_n, dc_n, dcells, h_0, c_0, weights, rows, steps, y, cells, gates, cell, batch_first, needs, *_, **__
):
    tokens, (directions, batch, _) = prod(x.shape[:-1]), h_0.shape
    products = 0
    if cell in ("lstm", "gru") and not gates.numel():  # they are computed again
        products = tokens * sum(w.numel() for w in weights if w.dim() == 2)
    per_direction = len(weights) // directions
    for i, (weight, is_needed) in enumerate(zip(weights, needs[3:])):
        if weight.dim() != 2:
            continue
        place = i % per_direction  # of W_ih, W_hh, and W_hr where there is a projection
        passes = tokens if place > 1 else tokens * needs[0] if place == 0 else tokens - (0 if needs[1] else batch)
        products += weight.numel() * (passes + tokens * is_needed)
    return 2 * products
