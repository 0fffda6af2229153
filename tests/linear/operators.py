"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

OPERATORS = {
    "linear_fwd": lambda: [(torch.randn(4, 6), torch.randn(5, 6), torch.randn(5), "leaky_relu", 0.2, 0.0, True)],
    "linear_bwd": lambda: [
        (torch.randn(4, 5), torch.randn(4, 6), torch.randn(5, 6), torch.randn(4, 5), "gelu", 0.0, 0.0, True, True, True)
    ],
    "matmul": lambda: [(torch.randn(4, 6), torch.randn(5, 6).t())],
}
