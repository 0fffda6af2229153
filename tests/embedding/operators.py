"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import saved

INDICES, BOUNDS = torch.tensor([3, 0, 3, 1, 1]), torch.tensor([0, 2, 2, 4])


def embedding_bag_bwd():
    weight, factors = torch.randn(5, 6), torch.randn(5)
    for mode, per_sample in (("sum", factors), ("mean", None), ("max", None)):
        y, counts, winners = saved("embedding_bag_fwd", weight, INDICES, BOUNDS, per_sample, mode, 1)
        yield y, INDICES, BOUNDS, per_sample, counts, winners, 5, mode, 1, mode != "max"


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
    "embedding_bag_fwd": lambda: [
        (torch.randn(5, 6), INDICES, BOUNDS, torch.randn(5), "sum", 0),
        (torch.randn(5, 6), INDICES, BOUNDS, None, "mean", -1),
        (torch.randn(5, 6), INDICES, BOUNDS, None, "max", 3),
    ],
    "embedding_bag_bwd": embedding_bag_bwd,
    "embedding_bag_dots": lambda: [(torch.randn(3, 6), torch.randn(5, 6), INDICES, BOUNDS, 1)],
    "embedding_renorm": lambda: [(torch.randn(5, 6), torch.tensor([3, 0, 3]), 1.0, 2.0)],
    "rotary": lambda: [
        (torch.randn(2, 3, 5, 8), torch.randn(1, 5, 4), torch.randn(1, 5, 4), False, False),
        (torch.randn(2, 5, 3, 10).transpose(1, 2), torch.randn(2, 5, 3), torch.randn(2, 5, 3), True, True),
    ],
}
