"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import SEED, saved

WHOLE = (0.0, 0.5, 0.0, -1, 0, 0)  # dropout_p, softmax_scale, softcap, window left and right, diagonal
RANDOM = (0.1, 0.3, 0.0, -1, 0, 0)


def heads(length):
    return torch.randn(1, 2, length, 4)


def attention_bwd():
    q, k, v = heads(5), heads(6), heads(6)
    for mask in (torch.randn(6).expand(1, 2, 5, 6), torch.randn(1, 2, 5, 6)):
        out, lse = saved("attention_fwd", q, k, v, mask, None, SEED, *RANDOM)
        yield heads(5), None, q, k, v, out, lse, mask, None, SEED, *RANDOM, True


def weights_bwd():
    q, k = heads(5), heads(6)
    weights, lse = saved("attention_weights_fwd", q, k, None, None, *WHOLE)
    yield torch.randn_like(weights), q, k, weights, lse, None, None, *WHOLE, False
    mask = torch.randn(5, 6).expand(1, 2, 5, 6)
    weights, lse = saved("attention_weights_fwd", q, k, mask, SEED, *RANDOM)
    yield torch.randn_like(weights), q, k, weights, lse, mask, SEED, *RANDOM, True


CU_SEQLENS = torch.tensor([0, 3, 3, 9], dtype=torch.int32)


def packed(rows=9):
    return torch.randn(rows, 2, 8)


def varlen_bwd():
    q, k, v = packed(), packed(), packed()
    options = (CU_SEQLENS, CU_SEQLENS, None, SEED, 6, 6, 0.1, 0.3, 0.0, -1, 0, True)
    out, lse = saved("attention_varlen_fwd", q, k, v, *options)
    yield torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, *options


OPERATORS = {
    "attention_fwd": lambda: [
        (heads(5), heads(6), heads(6), mask, None, None, *WHOLE) for mask in (None, torch.randn(1, 2, 5, 6))
    ],
    "attention_bwd": attention_bwd,
    "attention_weights_fwd": lambda: [
        (heads(5), heads(6), mask, None, *WHOLE) for mask in (None, torch.randn(1, 2, 5, 6))
    ],
    "attention_weights_bwd": weights_bwd,
    "attention_varlen_fwd": lambda: [
        (packed(), packed(), packed(), CU_SEQLENS, CU_SEQLENS, None, SEED, 6, 6, 0.1, 0.3, 0.0, -1, 0, True)
    ],
    "attention_varlen_bwd": varlen_bwd,
    "attention_decode": lambda: [
        (
            torch.randn(2, 4, 1, 8),
            torch.randn(2, 2, 7, 8),
            torch.randn(2, 2, 7, 8),
            torch.tensor([7, 3]),
            None,
            None,
            0.3,
            0.0,
            -1,
            0,
        )
    ],
}
