"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch


def interpolate():
    for transposed in (False, True):
        for mode, dims in (("bilinear", 2), ("nearest", 3), ("nearest-exact", 1)):
            sizes = [3, 5, 4][:dims], [6, 7, 9][:dims]
            x = torch.randn(2, 3, *sizes[transposed])
            yield x, sizes[1 - transposed], [0.0] * dims, mode, False, False, transposed, False
    x = torch.randn(2, 3, 8, 9).to(memory_format=torch.channels_last)
    yield x, [4, 6], [0.0, 0.0], "bicubic", False, True, False, True


def pad():
    for transposed in (False, True):
        for mode, pads in (("constant", [1, 2, -1, 2]), ("reflect", [2, 1]), ("circular", [1, 2, 3, 0])):
            sizes = [2, 3, 4, 5]
            for i in range(len(pads) // 2 * transposed):
                sizes[-1 - i] += pads[2 * i] + pads[2 * i + 1]
            yield torch.randn(sizes[-2 - len(pads) // 2 :]), pads, mode, 1.5, transposed, False
    yield torch.randn(2, 3, 8, 9).to(memory_format=torch.channels_last), [1, 1, 0, 2], "replicate", 0.0, False, True


OPERATORS = {"interpolate": lambda: list(interpolate()), "pad": lambda: list(pad())}
