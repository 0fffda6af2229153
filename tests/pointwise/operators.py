"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import SEED

OPERATORS = {
    "activation_fwd": lambda: [(torch.randn(3, 5), "gelu", 0.0, 0.0), (torch.randn(0, 5), "leaky_relu", 0.2, 0.0)],
    "activation_bwd": lambda: [(torch.randn(3, 5), torch.randn(3, 5), "leaky_relu", 0.2, 0.0)],
    "dropout_form": lambda: [
        (torch.randn(6, 20), SEED, 0.5, True, False, True),
        (torch.randn(2, 3, 4, 5), SEED, 0.5, False, True, False),
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), SEED, 0.5, True, True, True),
    ],
    "dropout": lambda: [(torch.randn(6, 20), SEED, 0.5)],
}
