"""Convolution between resamplings against its three steps, and modulated convolution against weights of each sample."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_error_within, backend_params, use
from torch.profiler import profile

import pyflash.functional as PF
from tests.gan.definitions import upfirdn2d

BACKENDS = backend_params()
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
CASES = [  # kernel, up, down, padding, taps of the filter (None: no filter)
    (3, 1, 1, 1, None), (3, 1, 1, (1, 0), None), (3, 1, 1, (2, 0, 1, 1), TAPS), (1, 1, 1, 0, None), (1, 1, 1, 1, TAPS),
    (1, 1, 2, 0, TAPS), (1, 2, 1, 0, TAPS), (3, 1, 2, 1, TAPS), (3, 1, 2, 1, TAPS[:, None] * TAPS), (3, 2, 1, 1, TAPS),
    (3, 2, 1, 0, TAPS), (5, 2, 1, 2, TAPS), (3, 2, 2, 1, TAPS), (3, 3, 1, 1, TAPS), (4, 2, 1, 1, TAPS[:3]), (3, 2, 1, 1, None),
]  # fmt: skip


ONE = torch.ones(1)


def in_three_steps(x, w, f, up, down, padding, groups=1, flip_weight=True, flip_filter=False):
    """Zeros between the places and the filter; the convolution; the filter and every `down`-th place."""
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    left, right, top, bottom = sides if len(sides) == 4 else (sides[0], sides[0], sides[1], sides[1])
    f = ONE if f is None else f
    height, width = f.shape[0], f.shape[-1]
    if up > 1:
        left, right = left + (width + up - 1) // 2, right + (width - up) // 2
        top, bottom = top + (height + up - 1) // 2, bottom + (height - up) // 2
    if down > 1:
        left, right = left + (width - down + 1) // 2, right + (width - down) // 2
        top, bottom = top + (height - down + 1) // 2, bottom + (height - down) // 2
    x = upfirdn2d(x, f if up > 1 else ONE, up, 1, (left, right, top, bottom), flip_filter, up**2)
    x = F.conv2d(x, w if flip_weight else w.flip(2, 3), groups=groups)
    return upfirdn2d(x, f if down > 1 else ONE, 1, down, flip_filter=flip_filter)


def filter_of(taps):
    return None if taps is None else PF.setup_filter(taps.tolist())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("flip_weight", [True, False])
@pytest.mark.parametrize(("kernel", "up", "down", "padding", "taps"), CASES)
def test_three_steps_in_fewer(kernel, up, down, padding, taps, flip_weight, backend):
    groups, f = 2, filter_of(taps)
    x, w = torch.randn(2, 4, 9, 8), torch.randn(6, 2, kernel, kernel)
    given = dict(up=up, down=down, padding=padding, groups=groups, flip_weight=flip_weight)
    truth = in_three_steps(x.double(), w.double(), f, **given)
    with use(backend):
        found = PF.conv2d_resample(x, w, f, **given)
    assert_error_within(found, in_three_steps(x, w, f, **given), truth)


def of_each_sample(x, weight, styles, noise, f, demodulate, **options):
    """Equations 1 to 3 as they stand: a weight for each sample."""
    found = []
    for x_i, style in zip(x, styles):
        w = weight * style[:, None, None]
        w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt() if demodulate else w
        found.append(in_three_steps(x_i[None], w, f, **options))
    y = torch.cat(found)
    return y if noise is None else y + noise


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_weights_of_each_sample(up, down, layout, demodulate, backend):
    f = filter_of(TAPS)
    x, weight = torch.randn(3, 5, 8, 8).contiguous(memory_format=layout), torch.randn(4, 5, 3, 3)
    styles, noise = torch.randn(3, 5) + 1, torch.randn(3, 1, 8 * up // down, 8 * up // down)
    tensors = [x, weight, styles, noise]
    options = dict(up=up, down=down, padding=1, flip_weight=up == 1)

    def gradients(function, tensors):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).to(y).view_as(y)).sum(), leaves)]

    def theirs(*tensors):
        return of_each_sample(*tensors, f, demodulate, **options)

    def ours(*tensors):
        return PF.modulated_conv2d(*tensors, resample_filter=f, demodulate=demodulate, **options)

    truth, torchs = gradients(theirs, [t.double() for t in tensors]), gradients(theirs, tensors)
    with use(backend):
        found = gradients(ours, tensors)
    for a, b, exact in zip(found, torchs, truth, strict=True):
        assert (a - exact).abs().max() <= 4 * (b - exact).abs().max() + 1e-6 * exact.abs().max()
    assert PF.modulated_conv2d(x, weight, styles, None, padding=1, fused_modconv=False).shape == (3, 4, 8, 8)


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_second_derivatives(up, backend):
    if backend == "cpu":
        pytest.importorskip("pyflash._cpu")
    f = filter_of(TAPS)
    tensors = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 3, 3), torch.randn(2, 2) + 1, torch.randn(2, 1, 4 * up, 4 * up)
    leaves = [t.double().requires_grad_() for t in tensors]

    def function(*tensors):
        with use(backend):
            return PF.modulated_conv2d(*tensors, up=up, padding=1, resample_filter=f)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def is_in_one(function, *tensors) -> bool:
    """Does the operator that is all of it serve this call?"""
    with profile() as of:
        function(*tensors)
    return any(event.name == "pyflash::modulated_conv_fwd" for event in of.events())


NOISES = [(), (8, 8), (3, 1, 8, 8), (1, 8, 8), (3, 1, 1, 1), (4, 1, 1)]  # the last two are not one number a place


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("noise_shape", NOISES)
def test_without_gradients_it_is_the_same(noise_shape, layout, backend):
    """In one operator: demodulated or not, every noise, with bias_act behind it, filtered before, padded unevenly."""
    f = filter_of(TAPS)
    x, weight = torch.randn(3, 5, 8, 8).contiguous(memory_format=layout), torch.randn(4, 5, 3, 3)
    styles, noise, b = torch.randn(3, 5) + 1, torch.randn(noise_shape) if noise_shape else None, torch.randn(4)
    behind = dict(act="lrelu", alpha=0.1, gain=1.5, clamp=1.2)
    for options in (
        dict(padding=1),
        dict(padding=1, demodulate=False, flip_weight=False),
        dict(padding=(2, 0, 0, 2)),
        dict(padding=1, down=2, resample_filter=f),
    ):
        if options.get("down") == 2 and noise is not None and noise.shape[-1] > 1:
            continue
        for then in ({}, dict(b=b, **behind)):

            def ours(x, weight, styles, noise, b, options=options, then=then):
                given = then if b is None or "b" not in then else {**then, "b": b}
                return PF.modulated_conv2d(x, weight, styles, noise, **options, **given)

            tensors = x, weight, styles, noise, b
            doubles = [None if t is None else t.double() for t in tensors]
            truth = of_each_sample(
                *doubles[:4],
                f if options.get("down") == 2 else None,
                options.get("demodulate", True),
                up=1,
                down=options.get("down", 1),
                padding=options["padding"],
                flip_weight=options.get("flip_weight", True),
            )
            truth = PF.bias_act(truth, doubles[4], **behind) if then else truth
            with torch.no_grad():
                with use("torch"):
                    torchs = ours(*tensors)
                with use(backend):
                    found = ours(*tensors)
            assert found.stride() == torchs.stride()
            assert_error_within([found], [torchs], [truth], weight, x)
            if backend.startswith("cpu") and noise_shape not in NOISES[-2:]:
                with use(backend):
                    assert is_in_one(ours, *tensors)
                    assert not is_in_one(ours, x.clone().requires_grad_(), *tensors[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_of_one_tap_and_of_none(backend):
    """As the layer that makes a picture; and pictures without samples or channels."""
    x, weight, styles = torch.randn(3, 5, 8, 8), torch.randn(2, 5, 1, 1), torch.randn(3, 5)
    f = filter_of(TAPS)
    for down in (1, 2):
        expected = of_each_sample(x, weight, styles, None, f, False, up=1, down=down, padding=0)
        with use(backend), torch.no_grad():
            found = PF.modulated_conv2d(x, weight, styles, down=down, resample_filter=f, demodulate=False)
        torch.testing.assert_close(found, expected)
    with use(backend), torch.no_grad():
        assert PF.modulated_conv2d(x[:0], weight, styles[:0]).shape == (0, 2, 8, 8)


def test_half_types_do_not_overflow():
    """Weights and styles whose products are beyond float16: demodulated, only their directions matter."""
    x, weight, styles = torch.randn(2, 4, 8, 8), 300 * torch.randn(4, 4, 3, 3), 300 * torch.randn(2, 4)
    expected = of_each_sample(x, weight, styles, None, None, True, up=1, down=1, padding=1)
    found = PF.modulated_conv2d(x.half(), weight.half(), styles.half(), padding=1)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


def test_what_does_not_fit():
    x, w = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
    with pytest.raises(
        ValueError, match=r"styles \(2, 5\), expected \[N, C_in, H, W\], \[C_out, C_in, kH, kW\] and \[N, C_in\]"
    ):
        PF.modulated_conv2d(x, w, torch.randn(2, 5))
    for channels in (1, 3, 5):  # a kernel would read as many as the weight has
        with (
            torch.no_grad(),
            pytest.raises(ValueError, match=rf"x has shape \(2, {channels}, 8, 8\), weight \(6, 4, 3, 3\)"),
        ):
            PF.modulated_conv2d(torch.randn(2, channels, 8, 8), w, torch.randn(2, 4))
    with pytest.raises(
        ValueError,
        match=r"padding is \(1, 2, 3\), expected a whole number, a pair \(across, down\) or \(left, right, top, bottom\)",
    ):
        PF.conv2d_resample(x, w, padding=(1, 2, 3))
