"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import saved

PADDED = [4, 5], [3, 3], [2, 2], [1, 1], [1, 1]  # of 7 x 9
ADAPTIVE = [3, 4], [0, 0], [1, 1], [0, 0], [1, 1]


def image(**layout):
    return torch.randn(2, 3, 7, 9).contiguous(**layout)


def max_pool_fwd():
    yield image(), *PADDED, 0
    yield image(), *ADAPTIVE, 64
    yield image(memory_format=torch.channels_last), *PADDED, 32


def max_pool_bwd():
    for x in (image(), image(memory_format=torch.channels_last)):
        y, indices = saved("max_pool_fwd", x, *PADDED, 32)
        yield torch.randn_like(y), indices, [2, 3, 7, 9], not x.is_contiguous(), *PADDED


def avg_pool_fwd():
    yield image(), *PADDED[:4], False, 0
    yield image(memory_format=torch.channels_last), *PADDED[:4], True, 3
    yield image(), *ADAPTIVE[:4], True, 0
    yield torch.randn(3, 7), [4], [3], [2], [1], False, 5


def avg_pool_bwd():
    for x in (image(), image(memory_format=torch.channels_last)):
        y = saved("avg_pool_fwd", x, *PADDED[:4], False, 0)
        yield torch.randn_like(y), [2, 3, 7, 9], not x.is_contiguous(), *PADDED[:4], False, 0


def max_unpool_fwd():
    for x, n in ((image(), 2), (image(memory_format=torch.channels_last), 2), (torch.randn(3, 2, 4, 5), 3)):
        channels_last = not x.is_contiguous()
        indices = torch.randint(200, x.shape).contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format
        )
        yield x, indices, [12, 18] if n == 2 else [4, 8, 10], channels_last


def max_unpool_bwd():
    for x, indices, size, channels_last in max_unpool_fwd():
        dy = saved("max_unpool_fwd", x, indices, size, channels_last)
        yield torch.randn_like(dy), indices, len(size), channels_last


OPERATORS = {
    "avg_pool_fwd": avg_pool_fwd,
    "avg_pool_bwd": avg_pool_bwd,
    "max_pool_fwd": max_pool_fwd,
    "max_pool_bwd": max_pool_bwd,
    "max_unpool_fwd": max_unpool_fwd,
    "max_unpool_bwd": max_unpool_bwd,
}
