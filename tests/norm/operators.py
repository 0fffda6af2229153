"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch
from operator_arguments import saved


def layer_norm_bwd():
    x, weight = torch.randn(6, 20), torch.randn(20)
    y, _, mean, rstd = saved("layer_norm_fwd", x, None, weight, None, 1e-5)
    for needs in ((True, True, True), (True, False, False), (False, True, False)):
        yield y, torch.randn(6, 20), x, weight, mean, rstd, *needs


def rms_norm_bwd():
    x, weight = torch.randn(6, 20), torch.randn(20)
    y, _, rstd = saved("rms_norm_fwd", x, None, weight, 1e-5)
    for needs in ((True, True), (True, False), (False, True)):
        yield y, torch.randn(6, 20), x, weight, rstd, *needs


OPERATORS = {
    "layer_norm_fwd": lambda: [
        (torch.randn(6, 20), torch.randn(6, 20), torch.randn(20), None, 1e-5),
        (torch.randn(6, 20), None, None, None, 1e-5),
    ],
    "layer_norm_bwd": layer_norm_bwd,
    "rms_norm_fwd": lambda: [
        (torch.randn(6, 20), torch.randn(6, 20), torch.randn(20), 1e-5),
        (torch.randn(6, 20), None, None, 1e-5),
    ],
    "rms_norm_bwd": rms_norm_bwd,
}
