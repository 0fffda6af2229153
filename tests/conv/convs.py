"""What the tests of convolution share."""

from math import prod, sqrt

import torch
from helpers import assert_error_within, backend_params

from pyflash.ops.conv.geometry import why_not_depthwise
from pyflash.ops.core.registry import span_of

BACKENDS = backend_params()
ON_CPU = backend_params("cpu")
OF_FLOAT64 = [*backend_params("torch"), *ON_CPU]  # Triton has no products of it
ON_CUDA = backend_params("cuda")  # depthwise alone
RUNNING = [name for name in OF_FLOAT64 if isinstance(name, str)]  # for tests that go through them
AROUND = 80  # elements; a vector and more
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def laid_out(shape, layout="contiguous", dtype=torch.float32):
    """Random numbers of a shape that lie in memory as `layout` says, between NaN: who reads beside them has it in the sum."""
    x = torch.randn(shape, dtype=dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=FORMATS.get(len(shape), torch.contiguous_format))
    elif layout == "transposed":
        x = x.mT.contiguous().mT
    elif layout == "sliced":  # every other column, the others being NaN
        x = torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]
    elif layout == "expanded":
        return x[..., :1].expand(shape)
    size = span_of(x)
    memory = torch.full((size + 2 * AROUND,), torch.nan, dtype=dtype)
    return memory.as_strided(x.shape, x.stride(), AROUND).copy_(x)


def is_served(backend, weight_shape):
    """Has the backend a kernel for convolutions with this weight?"""
    return not (backend.startswith("cuda") and why_not_depthwise(weight_shape))


def order_of(tensor):
    """Its strides where they say anything: where there is more than one element to step to."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1] if tensor.numel() else []


def by_definition(x, weight, size, stride, padding, dilation, groups):
    """y, each element the sum of a window's products: number o takes x[o * stride - padding + t * dilation] at tap t, and zero
    beside x. x and weight of zeros and ones show which meet."""
    windows = x.unflatten(1, (groups, weight.shape[1]))
    for dim, (o, n, s, p, t, d) in enumerate(zip(size, x.shape[2:], stride, padding, weight.shape[2:], dilation)):
        at = 3 + 2 * dim  # each dimension of x becomes two, taps and places
        places = torch.arange(t)[:, None] * d + torch.arange(o) * s - p
        places[(places < 0) | (places >= n)] = n  # a zero behind the last one
        windows = torch.cat([windows, windows.new_zeros(*windows.shape[:at], 1, *windows.shape[at + 1 :])], at)
        windows = windows.index_select(at, places.flatten()).unflatten(at, places.shape)
    taps, outs = "tuv"[: len(size)], "xyz"[: len(size)]
    of_weight = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
    meeting = "".join(map("".join, zip(taps, outs)))
    return torch.einsum(f"ngi{meeting},goi{taps}->ngo{outs}", windows, of_weight).flatten(1, 2)


def assert_sums_within(ours, torchs, truth, *terms, lengths):
    """As assert_error_within, of sums of so many products each: every addition rounds, by chance up or down, so the error
    of one grows with the square root of how many they are. In half types the last rounding hides it."""
    for our, their, true, length in zip(ours, torchs, truth, lengths, strict=True):
        rounds = sqrt(length) / 2 if our is not None and our.dtype.itemsize > 2 else 0
        assert_error_within([our], [their], [true], *terms, floor_ulp=4 + rounds)


def lengths_of(x_shape, weight_shape, y_shape):
    """How many products an element of y, dx, dweight and dbias is the sum of, at most."""
    _, channels, *kernel = weight_shape
    groups = x_shape[1] // max(channels, 1)
    positions = y_shape[0] * prod(y_shape[2:])
    return channels * prod(kernel), weight_shape[0] // max(groups, 1) * prod(kernel), positions, positions
