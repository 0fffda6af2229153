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


def channel_norm_fwd():
    x, weight, running = torch.randn(3, 4, 5), torch.randn(4), torch.rand(4)
    last = torch.randn(3, 5, 4).transpose(1, 2)
    for groups, uses_input in ((0, True), (0, False), (2, True), (4, True)):
        tracked = (None, None) if groups == 2 else (running, running)
        yield x, x * 2, weight, None, *tracked, groups, uses_input, 0.1, 1e-5, "relu", 0.0, 0.0
        yield last, None, None, weight, *tracked, groups, uses_input, 0.1, 1e-5, "silu", 0.0, 0.0


def channel_norm_bwd():
    for x, residual, weight, bias, *_, groups, uses_input, _, _, activation, first, second in channel_norm_fwd():
        tracked = torch.ones(4), torch.ones(4)
        of = (groups, uses_input, 0.1, 1e-5, activation, first, second)
        _, mean, rstd, _, _ = saved("channel_norm_fwd", x, residual, weight, bias, *tracked, *of)
        ending = activation, first, second, activation == "relu"
        for needs in ((True, True, True, True), (True, False, False, False), (False, False, True, False)):
            yield x * 3, x, residual, weight, bias, mean, rstd, groups, uses_input, *ending, *needs


def channel_norm_bwd_bwd():
    for dy, x, residual, weight, bias, mean, rstd, groups, uses_input, *ending, _, _, _, _, _ in channel_norm_bwd():
        is_curved = ending[0] == "silu"
        arriving = x.cos(), x.sin() if residual is not None else None, weight, None
        for given in (arriving, (None, *arriving[1:])):
            for needs in ((True, True, is_curved, True, is_curved), (True, False, False, False, False)):
                yield dy, x, residual, weight, bias, mean, rstd, *given, groups, uses_input, *ending, *needs


def local_response_norm_fwd():
    for x in (torch.randn(2, 7, 9), torch.randn(2, 9, 7).transpose(1, 2)):
        for size, beta in ((5, 0.75), (2, 0.6)):
            yield x, size, 0.5, beta, 2.0


def local_response_norm_bwd():
    for x, *rest in local_response_norm_fwd():
        yield x.sin(), x, *rest


def normalize_fwd():
    for kind in ("one", "two", "most", "mean"):
        yield torch.randn(3, 7, 5), kind, 1e-12
        yield torch.randn(6, 20, 1), kind, 4.0


def normalize_bwd():
    for x, kind, eps in normalize_fwd():
        _, norm = saved("normalize_fwd", x, kind, eps)
        yield x.sin(), x, norm, kind, eps


def spectral_sigma():
    weights = [torch.randn(6, 20), torch.randn(3, 7, 2, 2), torch.randn(5, 4, 3)]
    us, vs = [torch.randn(n) for n in (6, 7, 4)], [torch.randn(n) for n in (20, 12, 15)]
    for iterations in ([1, 2, 0], [0, 0, 0]):
        yield weights, us, vs, [0, 1, 1], iterations, [1e-12] * 3


def spectral_scale_fwd():
    for shape, dim in (((6, 20), 0), ((3, 7, 2), 1)):
        weight = torch.randn(shape)
        u, v = torch.randn(shape[dim]), torch.randn(weight.numel() // shape[dim])
        yield weight, u, v, torch.dot(u, weight.movedim(dim, 0).flatten(1) @ v), dim


OPERATORS = {
    "channel_norm_fwd": channel_norm_fwd,
    "channel_norm_bwd": channel_norm_bwd,
    "channel_norm_bwd_bwd": channel_norm_bwd_bwd,
    "layer_norm_fwd": lambda: [
        (torch.randn(6, 20), torch.randn(6, 20), torch.randn(20), None, 1e-5),
        (torch.randn(6, 20), None, None, None, 1e-5),
    ],
    "layer_norm_bwd": layer_norm_bwd,
    "local_response_norm_fwd": local_response_norm_fwd,
    "local_response_norm_bwd": local_response_norm_bwd,
    "normalize_fwd": normalize_fwd,
    "normalize_bwd": normalize_bwd,
    "rms_norm_fwd": lambda: [
        (torch.randn(6, 20), torch.randn(6, 20), torch.randn(20), 1e-5),
        (torch.randn(6, 20), None, None, 1e-5),
    ],
    "rms_norm_bwd": rms_norm_bwd,
    "spectral_sigma": spectral_sigma,
    "spectral_scale_fwd": spectral_scale_fwd,
    "spectral_scale_bwd": lambda: [(args[0].sin(), *args) for args in spectral_scale_fwd()],
}
