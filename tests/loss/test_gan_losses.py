"""Losses of a discriminator and of a generator, against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use
from torch.autograd import forward_ad

import pyflash.functional as PF
from pyflash.ops.core import backends
from pyflash.ops.loss.gan import DISCRIMINATOR, GENERATOR

BACKENDS = backend_params("cpu", "triton")
INF, NAN = float("inf"), float("nan")
EVERYWHERE = [*BACKENDS, "torch"]  # what `auto` leaves to torch's operations is composed of fewer of them here
CHUNK = 16384  # of a sum, of each backend
KINDS = ("minimax", "non_saturating", "hinge", "wasserstein", "least_squares")


def softplus(x):
    return F.softplus(x, threshold=40.0)  # beyond torch's default, which float64 has digits for


REAL = {  # what is averaged of real, of fake, and by the generator, as the docstrings have it
    "minimax": (lambda x: softplus(-x), softplus, lambda x: -softplus(x)),
    "non_saturating": (lambda x: softplus(-x), softplus, lambda x: softplus(-x)),
    "hinge": (lambda x: F.relu(1 - x), lambda x: F.relu(1 + x), lambda x: -x),
    "wasserstein": (lambda x: -x, lambda x: x, lambda x: -x),
    "least_squares": (lambda x: (x - 1).square() / 2, lambda x: x.square() / 2, lambda x: (x - 1).square() / 2),
}


def discriminator(real, fake, kind):
    of_real, of_fake, _ = REAL[kind]
    return of_real(real).mean() + of_fake(fake).mean()


def generator(fake, kind):
    return REAL[kind][2](fake).mean()


CASES = [  # shapes of real and fake, layout, why it is here
    ((64, 1), (64, 1), "contiguous", "a critic's logits"),
    ((1,), (), "contiguous", "one element, and a number"),
    ((5, 1, 6, 7), (3, 1, 9, 2), "contiguous", "patches, of other shapes"),
    ((4, 3, 6, 5), (4, 3, 6, 5), "channels_last", "dense, in another order"),
    ((6, 50), (6, 50), "sliced", "copies"),
    ((9, 33), (9, 33), "expanded", "copies of one row"),
    ((2, CHUNK + 100), (CHUNK, 3), "contiguous", "several chunks of a sum"),
]


def laid_out(shape, layout, dtype):
    x = (torch.randn(shape) * 3).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        return x[:1].expand(shape)
    return torch.cat([x, x], -1)[..., : shape[-1]] if layout == "sliced" else x


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for real_shape, fake_shape, layout, why in CASES:
        kinds = KINDS if real_shape != CASES[-1][0] else KINDS[2 * FLOAT_DTYPES.index(dtype) % 5 :][:1]
        for kind in kinds:
            real, fake = (laid_out(shape, layout, dtype) for shape in (real_shape, fake_shape))
            dy = torch.tensor(2.5)
            for ours, formula, args in (
                (PF.gan_discriminator_loss, discriminator, [real, fake, kind]),
                (PF.gan_generator_loss, generator, [fake, kind]),
            ):
                truth, theirs = run(formula, args, dy, torch.float64), run(formula, args, dy)
                found = run(ours, args, dy, backend=backend)
                scales = [torch.tensor(2.5 / t.numel()) for t in args[:-1]]  # of a gradient that saturates
                assert_error_within(found[:1], theirs[:1], truth[:1], torch.ones(()))  # means of both signs cancel
                assert_error_within(found[1:], theirs[1:], truth[1:], *scales)
                for grad in found[1:] if backend != "torch" else ():
                    assert grad.is_contiguous(memory_format=torch.channels_last) or layout != "channels_last", why


@pytest.mark.parametrize("backend", EVERYWHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_and_far(backend, kind):
    for values in ((INF, 1.0), (-INF, 1.0), (NAN, 1.0), (1e4, -1e4), (1.0, -1.0), (-0.0, 0.0), (1e-30, 100.0, 30.0)):
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor(values, dtype=dtype)
            for ours, formula, args in (
                (PF.gan_discriminator_loss, discriminator, [x, x.flip(0), kind]),
                (PF.gan_generator_loss, generator, [x, kind]),
            ):
                expected, found = run(formula, args, torch.ones(())), run(ours, args, torch.ones(()), backend=backend)
                for a, b in zip(found, expected):
                    torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_softplus_at_its_ends_has_the_gradient_of_its_limit(backend):
    x = torch.tensor([INF, -INF, NAN, 200.0, -200.0], requires_grad=True)
    with use(backend):
        (dx,) = torch.autograd.grad(PF.gan_generator_loss(x, "non_saturating"), x)
        (dz,) = torch.autograd.grad(PF.gan_generator_loss(x, "minimax"), x)
    expected = torch.tensor([0.0, -1.0, NAN, 0.0, -1.0]) / 5
    torch.testing.assert_close(dx, expected, equal_nan=True)
    torch.testing.assert_close(dz, torch.tensor([-1.0, 0.0, NAN, -1.0, 0.0]) / 5, equal_nan=True)


@pytest.mark.parametrize("backend", EVERYWHERE)
def test_no_elements_give_nan_as_torchs_mean(backend):
    for kind in KINDS:
        empty, some = torch.randn(0, 3, requires_grad=True), torch.randn(4, requires_grad=True)
        with use(backend):
            for loss in (PF.gan_generator_loss(empty, kind), PF.gan_discriminator_loss(some, empty, kind)):
                assert loss.isnan() and loss.shape == ()
            grads = torch.autograd.grad(loss, (some, empty))
            assert grads[1].shape == (0, 3) and grads[0].isfinite().all()


@pytest.mark.parametrize("backend", ["cpu", "triton", "torch"])
def test_gradients_of_gradients(backend):
    for kind in KINDS:
        real, fake = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
        with use(backend):
            for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
                for loss, inputs in (
                    (lambda r, f, kind=kind: PF.gan_discriminator_loss(r, f, kind), (real, fake)),
                    (lambda f, kind=kind, real=real: PF.gan_discriminator_loss(real.detach(), f, kind), (fake,)),
                    (lambda f, kind=kind: PF.gan_generator_loss(f, kind), (fake,)),
                ):
                    assert check(loss, inputs, fast_mode=backend == "triton")


def gradients_or_zeros(value, *tensors):
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    grads = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors)]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_second_derivatives_of_each_type(backend, dtype):
    """Of a function of the gradient, and the third derivative, which torch operations give."""

    def derivatives(loss, real, fake):
        grads = torch.autograd.grad(loss(real, fake), (real, fake), create_graph=True)
        penalty = sum((g.float() if g.dtype != torch.float64 else g).square().sum() * 9 for g in grads)
        seconds = gradients_or_zeros(penalty, real, fake)
        thirds = gradients_or_zeros(sum(g.double().square().sum() for g in seconds), real, fake)
        return *(g.detach() for g in seconds), *(g.detach() for g in thirds)

    for kind in KINDS:
        tensors = [torch.randn(4, 5).to(dtype).requires_grad_() for _ in range(2)]
        with use(backend):
            found = derivatives(lambda r, f, kind=kind: PF.gan_discriminator_loss(r, f, kind), *tensors)
        wide = [t.detach().double().requires_grad_() for t in tensors]
        truth = derivatives(lambda r, f, kind=kind: discriminator(r, f, kind), *wide)
        theirs = derivatives(lambda r, f, kind=kind: discriminator(r, f, kind), *tensors)
        assert_error_within(found, theirs, truth, torch.tensor(0.1))


def test_results_do_not_depend_on_threads():
    real, fake = torch.randn(7 * CHUNK + 5), torch.randn(3 * CHUNK)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                run(PF.gan_discriminator_loss, [real, fake, "non_saturating"], torch.ones(()), backend="cpu")
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_what_is_refused(backend):
    x = torch.randn(4)
    with use(backend):
        for call in (lambda kind: PF.gan_discriminator_loss(x, x, kind), lambda kind: PF.gan_generator_loss(x, kind)):
            for kind in ("lsgan", None, ["hinge"]):
                with pytest.raises(ValueError, match=r"minimax.*non_saturating.*hinge.*wasserstein.*least_squares"):
                    call(kind)
        with pytest.raises(RuntimeError, match=r"fake is torch\.int64, expected floating-point"):
            PF.gan_discriminator_loss(x, x.long(), "hinge")
        with pytest.raises(RuntimeError, match=r"real is torch\.bool"):
            PF.gan_discriminator_loss(x > 0, x, "hinge")
        with pytest.raises(RuntimeError, match=r"fake is torch\.complex64"):
            PF.gan_generator_loss(x.cfloat(), "wasserstein")
        with pytest.raises(TypeError, match="fake is a list"):
            PF.gan_generator_loss([1.0], "wasserstein")
        with pytest.raises(RuntimeError, match="real is on cpu, fake on meta"):
            PF.gan_discriminator_loss(x, x.to("meta"), "hinge")
    assert tuple(DISCRIMINATOR) == tuple(GENERATOR) == KINDS


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_types_of_results(backend):
    x, h = torch.randn(6, requires_grad=True), torch.randn(4).half().requires_grad_()
    with use(backend):
        assert PF.gan_discriminator_loss(x, h, "hinge").dtype == torch.float32
        assert PF.gan_discriminator_loss(h, h, "hinge").dtype == torch.float16
        assert PF.gan_generator_loss(h.double(), "hinge").dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):  # as torch's losses
            loss = PF.gan_discriminator_loss(h, h.detach(), "hinge")
            assert loss.dtype == torch.float32 == F.mse_loss(h, h.detach()).dtype
            assert PF.gan_generator_loss(h.double(), "hinge").dtype == torch.float64
        assert torch.autograd.grad(loss, h)[0].dtype == torch.float16


def test_a_type_that_no_kernel_has_reaches_none():
    x = torch.randn(1 << 16)
    with use("cpu"), pytest.raises(NotImplementedError, match=r"fake is torch\.float8_e5m2"):
        PF.gan_discriminator_loss(x, x.to(torch.float8_e5m2), "hinge")
    with use("cpu"), pytest.raises(NotImplementedError, match="cpu does not serve float8_e5m2"):
        PF.gan_generator_loss(x.to(torch.float8_e5m2), "hinge")
    with use("cpu"), pytest.raises(NotImplementedError, match="only strided"):
        PF.gan_generator_loss(x.view(256, 256).to_sparse(), "hinge")


def test_small_losses_are_torchs_and_counted():
    before = backends.counts.copy()
    small, large = torch.randn(4), torch.randn(1 << 20)
    for x, kind in ((small, "least_squares"), (large, "least_squares"), (large, "wasserstein")):
        PF.gan_generator_loss(x, kind)
    taken = [(name, backend) for name, backend, _ in backends.counts - before]
    assert sorted(taken) == [("gan_generator_loss", backend) for backend in ("cpu", "torch", "torch")]


@pytest.mark.filterwarnings("error:.*was resized")
def test_transforms_of_what_torch_computes():
    """A mean of squares is an operation of torch's, whose rules want a target of the samples' own shape."""
    x = torch.randn(3, 2, 2)
    for kind in KINDS:
        found = torch.func.vmap(lambda x, kind=kind: PF.gan_generator_loss(x, kind))(x)
        torch.testing.assert_close(found, torch.stack([generator(one, kind) for one in x]))
        found, expected = (
            torch.func.hessian(lambda x, f=f, kind=kind: f(x[0], x[1], kind))(x)
            for f in (PF.gan_discriminator_loss, discriminator)
        )
        torch.testing.assert_close(found, expected)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangent = forward_ad.unpack_dual(PF.gan_generator_loss(dual, kind)).tangent
        expected = torch.autograd.grad(generator(x.requires_grad_(), kind), x)[0].sum()
        torch.testing.assert_close(tangent, expected)
        x = x.detach()


@pytest.mark.slow
def test_compile_export_and_functorch():
    real, fake = torch.randn(6, 1, requires_grad=True), torch.randn(3, 2, 2, requires_grad=True)

    def function(real, fake):
        return PF.gan_discriminator_loss(real, fake, "non_saturating") + PF.gan_generator_loss(fake, "hinge")

    def results(function):
        loss = function(real, fake)
        return loss.detach(), *torch.autograd.grad(loss, (real, fake))

    class Module(torch.nn.Module):
        def forward(self, x):
            return PF.gan_generator_loss(x, "least_squares")

    with use("cpu"):
        torch.testing.assert_close(
            results(torch.compile(function, fullgraph=True, backend="aot_eager")), results(function)
        )
        program = torch.export.export(Module(), (fake.detach(),))
        assert any("pyflash.mean_terms_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(fake.detach()), generator(fake.detach(), "least_squares"))
        torch.testing.assert_close(
            torch.func.vmap(lambda x: PF.gan_generator_loss(x, "minimax"))(fake),
            torch.stack([generator(x, "minimax") for x in fake]),
        )
        hessians = [
            torch.func.hessian(lambda x, f=f: f(x, "non_saturating"))(fake.detach())
            for f in (PF.gan_generator_loss, generator)
        ]
        torch.testing.assert_close(*hessians)
