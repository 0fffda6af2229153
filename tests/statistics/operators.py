"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

from math import inf

import torch


def tensor_stats():
    yield torch.randn(3, 7), 1, 1, 21, -inf, inf
    yield torch.randn(3, 7), 3, 7, 1, -0.5, 0.5
    yield torch.randn(2, 3, 4, 4), 2, 3, 16, -inf, 1.0


OPERATORS = {"tensor_stats": tensor_stats}
