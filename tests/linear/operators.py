"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

OPERATORS = {
    "linear_fwd": lambda: [(torch.randn(4, 6), torch.randn(5, 6), torch.randn(5), "gelu", True)],
    "linear_bwd": lambda: [
        (torch.randn(4, 5), torch.randn(4, 6), torch.randn(5, 6), torch.randn(4, 5), "gelu", True, True, True)
    ],
    "matmul": lambda: [(torch.randn(4, 6), torch.randn(5, 6).t())],
}
