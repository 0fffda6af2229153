"""What torch.utils.flop_counter.FlopCounterMode counts for our operators: matrix products, as it does for torch's.

A multiplication and an addition are two. As torch's formulas do: a causal mask halves nothing, the backward of attention
counts the scores that it computes again, what costs a number per element counts nothing.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from math import prod

import torch

from pyflash.ops.core.checks import _is_traced

_COUNTER = "torch.utils.flop_counter"


def _linear_fwd(x, weight, *_, **__):
    return 2 * x.shape[0] * weight.numel()


def _linear_bwd(dy, x, weight, saved, activation, need_dx, need_dweight, *_, **__):
    return (need_dx + need_dweight) * _linear_fwd(x, weight)


def _matmul(a, b, *_, **__):
    return 2 * a.numel() * b.shape[1]


def _attention_fwd(q, k, v, *_, **__):
    return 2 * prod(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3])


def _attention_bwd(dout, dlse, q, k, v, *_, **__):
    return 2 * prod(q.shape[:3]) * k.shape[2] * (3 * q.shape[3] + 2 * v.shape[3])


def _weights_fwd(q, k, *_, **__):
    return 2 * q.numel() * k.shape[2]


def _weights_bwd(dweights, q, k, *_, **__):
    return 2 * _weights_fwd(q, k)


def _lengths(values, longest, count):
    """Of each sequence; where nobody can read them, the longest that there may be."""
    return [longest] * count if values.is_meta or _is_traced(values) else values.tolist()


def _scores(q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """How many elements the matrices of scores of all sequences and heads have."""
    rows = _lengths(cu_seqlens_q.diff(), max_seqlen_q, len(cu_seqlens_q) - 1)
    keys = _lengths(cu_seqlens_k.diff(), max_seqlen_k, len(cu_seqlens_k) - 1)
    return q.shape[1] * sum(r * k for r, k in zip(rows, keys))


def _varlen_fwd(q, k, v, cu_q, cu_k, slopes, seed, max_q, max_k, *_, **__):
    return 2 * _scores(q, cu_q, cu_k, max_q, max_k) * (q.shape[2] + v.shape[2])


def _varlen_bwd(dout, dlse, q, k, v, out, lse, cu_q, cu_k, slopes, seed, max_q, max_k, *_, **__):
    return 2 * _scores(q, cu_q, cu_k, max_q, max_k) * (3 * q.shape[2] + 2 * v.shape[2])


def _decode(q, k_cache, v_cache, cache_seqlens, *_, **__):
    keys = sum(_lengths(cache_seqlens, k_cache.shape[2], len(cache_seqlens)))
    return 2 * q.shape[1] * q.shape[2] * keys * (q.shape[3] + v_cache.shape[3])


def _rnn_fwd(x, h_0, c_0, weights, *_, **__):
    return 2 * prod(x.shape[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def _rnn_step(x, h, c, weights, *_, **__):
    return _rnn_fwd(x, h, c, weights)


def _rnn_bwd(
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


FORMULAS = {  # of the operators that multiply matrices
    "linear_fwd": _linear_fwd,
    "linear_bwd": _linear_bwd,
    "matmul": _matmul,
    "attention_fwd": _attention_fwd,
    "attention_bwd": _attention_bwd,
    "attention_weights_fwd": _weights_fwd,
    "attention_weights_bwd": _weights_bwd,
    "attention_varlen_fwd": _varlen_fwd,
    "attention_varlen_bwd": _varlen_bwd,
    "attention_decode": _decode,
    "rnn_fwd": _rnn_fwd,
    "rnn_cached_fwd": _rnn_fwd,
    "rnn_step": _rnn_step,
    "rnn_bwd": _rnn_bwd,
}


def _register(flop_counter):
    for name, formula in FORMULAS.items():
        flop_counter.register_flop_formula(getattr(torch.ops.pyflash, name), get_raw=True)(formula)


class _Following(Loader):
    """Another loader, and `_register` after it."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register(module)


class _Finder(MetaPathFinder):
    """Waits for the import of the counter, which takes 0.2 s and brings Triton: who counts nothing does not pay."""

    def find_spec(self, name, path, target=None):
        if name != _COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        spec.loader = _Following(spec.loader)
        return spec


def register() -> None:
    """Makes FlopCounterMode know our operators, now or as soon as it is imported."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _Finder())
