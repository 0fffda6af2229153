"""Penalties of a critic's gradient: their numbers and the gradients of parameters, against torch.nn's."""

import copy

import pytest
import torch
from helpers import assert_error_within, backend_params, relative_error, use

import pyflash
import pyflash.functional as PF
import pyflash.nn
from benchmarks.operations.gan.gan_step import Counter

BACKENDS = [*backend_params("cpu", "triton"), "auto"]


def critic(nn):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 8),
        nn.LeakyReLU(0.2), nn.Linear(8, 1),
    )  # fmt: skip


def gradient_at(model, x):
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return grad.flatten(1)


def plain_gradient_penalty(model, real, fake):
    u = torch.rand(len(real), 1, 1, 1, dtype=real.dtype)
    return (gradient_at(model, u * real + (1 - u) * fake).norm(2, 1) - 1).square().mean()


def plain_r1(model, real, fake):
    return gradient_at(model, real).square().sum(1).mean()


def step(penalty, model, *samples):
    torch.manual_seed(3)
    loss = penalty(model, *samples)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)  # none of the last bias
    return loss.detach(), *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters))


def samples(dtype=torch.float32):
    return torch.randn(4, 2, 5, 6, dtype=dtype), torch.randn(4, 2, 5, 6, dtype=dtype)


PENALTIES = {
    "gradient_penalty": (PF.gradient_penalty, plain_gradient_penalty),
    "r1_penalty": (lambda model, real, fake: PF.r1_penalty(model, real), plain_r1),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("origin", ["built", "replaced"])
def test_a_step_is_torchs(backend, name, origin):
    ours, plain = PENALTIES[name]
    for dtype in (torch.float32, torch.float64):
        if backend == "triton" and dtype == torch.float64:
            continue  # matrix products of float64 are no kernel's there
        real, fake = samples(dtype)
        theirs = critic(torch.nn).to(dtype)
        model = critic(pyflash.nn) if origin == "built" else pyflash.replace(copy.deepcopy(theirs))
        model = model.to(dtype)
        with use(backend):
            found = step(ours, model, real, fake)
        if dtype == torch.float64:
            for a, b in zip(found, step(plain, theirs, real, fake)):
                torch.testing.assert_close(a, b)
            continue
        torch.manual_seed(3)
        u = torch.rand(4, 1, 1, 1)  # of float64 others are drawn

        def with_this_u(model, real, fake, u=u):
            return (gradient_at(model, (u * real + (1 - u) * fake)).norm(2, 1) - 1).square().mean()

        same = with_this_u if name == "gradient_penalty" else plain
        truth = step(same, copy.deepcopy(theirs).double(), real.double(), fake.double())
        expected = step(plain, theirs, real, fake)
        assert_error_within(found, expected, truth, *truth)


def test_samples_are_left_alone_and_get_no_gradient():
    real, fake = samples()
    before = real.clone(), fake.clone()
    model = critic(pyflash.nn)
    PF.gradient_penalty(model, real, fake).backward()
    PF.r1_penalty(model, real).backward()
    assert torch.equal(real, before[0]) and torch.equal(fake, before[1])
    assert not real.requires_grad and not fake.requires_grad and real.grad is None
    fake.requires_grad_()
    PF.gradient_penalty(model, real, fake * 2).backward()
    assert fake.grad is None
    with torch.inference_mode():
        made = fake * 2
    assert PF.r1_penalty(model, made).requires_grad and PF.gradient_penalty(model, real, made).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PENALTIES)
def test_nothing_runs_back_through_the_scores(backend, name):
    """Of a critic of flat activations the penalty's gradient comes through its gradient alone; what torch sends back through
    the critic itself, as dear as another backward, is zeros."""

    def calls(nn, context):
        model, seen = critic(nn)[:3].append(nn.Linear(36, 1)), []
        model[1].inplace = True
        model[0].register_forward_hook(lambda module, args, y: y.register_hook(seen.append) and None)
        with context:
            PENALTIES[name][0](model, *samples()).backward()
        return sum(g is not None for g in seen)

    assert (calls(pyflash.nn, use(backend)), calls(torch.nn, use("torch"))) == (1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_a_gradient_nobody_wants_nothing_is_computed(backend):
    """torch.autograd.grad(y, x) and backward(inputs=...) name what they want."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    conv, fc = pyflash.nn.Conv2d(3, 4, 3, padding=1), pyflash.nn.Linear(8, 8)
    products = [2 * 2 * 64 * conv.weight.numel(), 2 * 2 * 4 * 8 * fc.weight.numel()]

    def flops_of(run):
        with Counter() as counter:
            run()
        return counter.total

    with use(backend):
        loss = fc(conv(x)).sum()
        assert flops_of(lambda: torch.autograd.grad(loss, x, retain_graph=True)) == sum(products)
        wanted = [conv.weight, fc.weight]
        assert flops_of(lambda: loss.backward(inputs=wanted)) == products[0] + 2 * products[1]
    assert x.grad is None and all(w.grad is not None for w in wanted)


def test_target_and_a_gradient_of_zero():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    real = torch.randn(7, 2)
    torch.testing.assert_close(PF.gradient_penalty(lambda x: x @ weight, real, real, 1.5), torch.tensor(3.5**2))
    torch.testing.assert_close(PF.r1_penalty(lambda x: (x @ weight)[:, None], real), torch.tensor(25.0))
    flat = torch.zeros(2, requires_grad=True)
    loss = PF.gradient_penalty(lambda x: x @ flat, real, real)
    assert loss == 1 and torch.equal(torch.autograd.grad(loss, flat)[0], torch.zeros(2))


@pytest.mark.parametrize("name", PENALTIES)
def test_mixed_precision(name):
    ours, _ = PENALTIES[name]
    model, (real, fake) = critic(pyflash.nn), samples()
    expected = step(ours, model, real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(ours, model, real, fake)
    assert found[0].dtype == torch.float32
    theirs = step(PENALTIES[name][1], critic(torch.nn), real, fake)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = step(PENALTIES[name][1], critic(torch.nn), real, fake)
    for a, b, c, d in zip(found, expected, rounded, theirs):
        assert relative_error(a, b) <= max(0.02, 2 * relative_error(c, d)) or not b.any()
    # Squares of gradients that float16 does not hold.
    weight = torch.full((4,), 300.0, dtype=torch.float16, requires_grad=True)
    real = torch.randn(3, 4).half()
    loss = ours(lambda x: x @ weight, real, real)
    assert loss.dtype == torch.float32 and loss == (599**2 if name == "gradient_penalty" else 600**2)


def test_what_is_refused():
    real, fake = samples()
    model = critic(pyflash.nn)
    for penalty, _ in PENALTIES.values():
        for off in (torch.no_grad(), torch.inference_mode()):
            with off, pytest.raises(RuntimeError, match=r"gradients are off.*outside of torch\.no_grad"):
                penalty(model, real, fake)
        for wrong in (lambda x: torch.zeros(4, requires_grad=True), lambda x: model(x).detach()):
            with pytest.raises(RuntimeError, match="does not depend on its argument"):
                penalty(wrong, real, fake)
        with pytest.raises(TypeError, match="critic returned a tuple"):
            penalty(lambda x: (x,), real, fake)
        with pytest.raises(TypeError, match="critic is a NoneType"):
            penalty(None, real, fake)
        with pytest.raises(RuntimeError, match=r"real is torch\.uint8"):
            penalty(model, real.byte(), fake)
        with pytest.raises(ValueError, match="real has no dimensions"):
            penalty(model, torch.tensor(1.0), fake)
    with pytest.raises(ValueError, match=r"real is \(4, 2, 5, 6\) and fake \(3, 2, 5, 6\)"):
        PF.gradient_penalty(model, real, fake[:3])
