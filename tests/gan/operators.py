"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

from pyflash.ops.gan import passes


def upfirdn2d():
    x = torch.randn(2, 3, 5, 6)
    yield x, torch.randn(4, 4), [10, 12], [2, 2], [1, 1], [2, 2], False, 4.0, False
    yield x, torch.randn(5), [2, 7], [1, 3], [2, 2], [-1, 0], True, 1.0, False
    yield x.to(memory_format=torch.channels_last), torch.randn(3, 2), [5, 6], [1, 1], [1, 1], [1, 1], False, 1.0, True


def filtered_lrelu():
    x, fu, fd, b = torch.randn(2, 3, 5, 6), torch.randn(4), torch.randn(3, 3), torch.randn(3)
    form = 2, 2, [2, 2], False, 1.4, 0.2, 0.7
    middle, size = [10, 12], [4, 5]
    yield x, fu, fd, b, None, middle, size, *form, passes.VALUE, False
    yield x, fu, fd, None, torch.randn(2, 3, 4, 5), middle, [5, 6], *form, passes.GRADIENT, False
    yield x, fu, fd, b, torch.randn(2, 3, 5, 6), middle, size, *form, passes.DERIVATIVE, False


def minibatch_stddev_fwd():
    for x in (torch.randn(4, 6, 3, 5), torch.randn(4, 6, 3, 5).to(memory_format=torch.channels_last)):
        for group, num_channels in ((4, 1), (2, 3)):
            yield x, group, num_channels, not x.is_contiguous()


def minibatch_stddev_bwd():
    for x, group, num_channels, is_last in minibatch_stddev_fwd():
        yield torch.randn(4, 6 + num_channels, 3, 5), x, group, num_channels, is_last


OPERATORS = {
    "filtered_lrelu": lambda: list(filtered_lrelu()),
    "minibatch_stddev_fwd": lambda: list(minibatch_stddev_fwd()),
    "minibatch_stddev_bwd": lambda: list(minibatch_stddev_bwd()),
    "minibatch_stddev_bwd_bwd": lambda: [(args[1].sin(), *args) for args in minibatch_stddev_bwd()],
    "upfirdn2d": lambda: list(upfirdn2d()),
}
