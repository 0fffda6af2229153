"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import SEED


def bias_act(last, *rest):
    """Everything, and nothing but what is needed."""
    like, vector = torch.randn(3, 5), torch.randn(5)
    return [
        (like, *last(like, vector), SEED, 1, "leaky_relu", 0.2, 0.0, 1.5, 1.0, 0.25, *rest),
        (like, *(None,) * len(last(like, vector)), None, 1, "", 0.0, 0.0, 1.0, -1.0, 0.0, *rest),
    ]


OPERATORS = {
    "activation_fwd": lambda: [(torch.randn(3, 5), "gelu", 0.0, 0.0), (torch.randn(0, 5), "leaky_relu", 0.2, 0.0)],
    "activation_bwd": lambda: [(torch.randn(3, 5), torch.randn(3, 5), "leaky_relu", 0.2, 0.0)],
    "activation_bwd_bwd": lambda: [
        (*torch.randn(3, 3, 5), "softplus", 2.0, 3.0, True),
        (*torch.randn(3, 3, 5), "tanh", 0.0, 0.0, False),
    ],
    "bias_act_fwd": lambda: bias_act(lambda like, vector: (vector, like)),
    "bias_act_bwd": lambda: bias_act(lambda like, vector: (like, vector), True),
    "dropout_form": lambda: [
        (torch.randn(6, 20), SEED, 0.5, True, False, True),
        (torch.randn(2, 3, 4, 5), SEED, 0.5, False, True, False),
        (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), SEED, 0.5, True, True, True),
    ],
    "dropout": lambda: [(torch.randn(6, 20), SEED, 0.5)],
    "gated_fwd": lambda: [
        (torch.randn(3, 5), torch.randn(3, 5), False, "silu", 0.0, 0.0),
        (torch.randn(3, 6), None, True, "sigmoid", 0.0, 0.0),
    ],
    "gated_bwd": lambda: [
        (torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5), False, "silu", 0.0, 0.0),
        (torch.randn(3, 3), torch.randn(3, 6), None, True, "sigmoid", 0.0, 0.0),
    ],
    "gated_bwd_bwd": lambda: [
        (*torch.randn(5, 3, 5), False, "silu", 0.0, 0.0),
        (*torch.randn(3, 3, 5), None, torch.randn(3, 5), False, "relu", 0.0, 0.0),
        (torch.randn(3, 3), torch.randn(3, 6), None, torch.randn(3, 6), None, True, "sigmoid", 0.0, 0.0),
    ],
    "prelu_fwd": lambda: [(torch.randn(3, 5), torch.randn(5)), (torch.randn(3, 5), torch.randn(1))],
    "prelu_bwd": lambda: [(torch.randn(3, 5), torch.randn(3, 5), torch.randn(5), need) for need in (True, False)],
    "rrelu": lambda: [(torch.randn(6, 20), torch.randn(6, 20), SEED, 0.1, 0.3)],
}
