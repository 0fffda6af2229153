"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

OPERATORS = {
    "embedding_fwd": lambda: [
        (torch.randn(5, 6), torch.tensor([3, 0, 3])),
        (torch.randn(5, 6), torch.tensor([4], dtype=torch.int32)),
        (torch.randn(5, 6), torch.empty(0, dtype=torch.int64)),
    ],
    "embedding_bwd": lambda: [
        (torch.randn(3, 6), torch.tensor([3, 0, 3]), 5, -1, False),
        (torch.randn(3, 6), torch.tensor([3, 0, 3], dtype=torch.int32), 5, 0, True),
    ],
    "embedding_renorm": lambda: [(torch.randn(5, 6), torch.tensor([3, 0, 3]), 1.0, 2.0)],
    "rotary": lambda: [
        (torch.randn(2, 3, 5, 8), torch.randn(1, 5, 4), torch.randn(1, 5, 4), False, False),
        (torch.randn(2, 5, 3, 10).transpose(1, 2), torch.randn(2, 5, 3), torch.randn(2, 5, 3), True, True),
    ],
}
