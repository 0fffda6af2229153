"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import saved


def softmax_fwd():
    x = torch.randn(3, 5, 7)
    for dim in (2, 1, 0):
        for kind in ("softmax", "log_softmax", "softmin"):
            yield x, dim, kind, torch.float32
    yield x.bfloat16(), 1, "softmax", torch.float32
    yield x.transpose(0, 1), 2, "softmax", torch.float32


def softmax_bwd():
    dy = torch.randn(3, 5, 7)
    for dim, kind in ((2, "softmax"), (1, "log_softmax"), (0, "softmin")):
        yield dy, saved("softmax_fwd", torch.randn(3, 5, 7), dim, kind, torch.float32), dim, kind, torch.float32
    yield dy, dy.softmax(1), 1, "softmax", torch.float16


OPERATORS = {"softmax_fwd": softmax_fwd, "softmax_bwd": softmax_bwd}
