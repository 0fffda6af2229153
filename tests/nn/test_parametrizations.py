"""Spectral norm of modules of ours: torch's numbers, step by step, and torch's state_dict."""

import copy

import pytest
import torch
from helpers import use

import pyflash
import pyflash.nn
from pyflash.nn.utils.parametrizations import spectral_norm
from pyflash.ops.core import backends


def discriminator(nn, of=spectral_norm):
    torch.manual_seed(4)
    return nn.Sequential(
        of(nn.Conv2d(2, 4, 3, stride=2, padding=1)), nn.LeakyReLU(0.2), of(nn.ConvTranspose2d(4, 3, 2)), nn.Flatten(),
        of(nn.Linear(48, 5)), nn.LeakyReLU(0.2), of(nn.Linear(5, 1), n_power_iterations=3),
    )  # fmt: skip


def sigmas(model):
    for name, module in model.named_modules():
        if name.endswith("parametrizations.weight"):
            (norm,) = module
            matrix = norm._reshape_weight_to_matrix(module.original.detach())
            yield torch.vdot(norm._u, matrix @ norm._v)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("origin", ["built", "replaced", "replaced before"])
def test_twenty_steps_are_torchs(backend, origin):
    if backends.MISSING["cpu"]:
        pytest.skip(backends.MISSING["cpu"])
    theirs = discriminator(torch.nn, torch.nn.utils.parametrizations.spectral_norm).double()
    if origin == "built":
        ours = discriminator(pyflash.nn).double()
    elif origin == "replaced":
        ours = pyflash.replace(copy.deepcopy(theirs))
    else:
        ours = discriminator(torch.nn, lambda module, **more: spectral_norm(pyflash.replace(module), **more)).double()
        pyflash.replace(ours)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    models = ours, theirs
    optimizers = [torch.optim.SGD(model.parameters(), 0.1) for model in models]
    for step in range(20):
        x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
        for model, optimizer in zip(models, optimizers):
            optimizer.zero_grad()
            with use(backend):
                (model(x).mean() - model(x.flip(0) * 2).square().mean()).backward()  # two forwards, as of real and fake
            optimizer.step()
        of_ours, of_theirs = list(sigmas(ours)), list(sigmas(theirs))
        assert len(of_ours) == 4
        for a, b in zip(of_ours, of_theirs):
            torch.testing.assert_close(a, b, msg=lambda m, step=step: f"step {step}: {m}")
    for model in models:
        model.eval()
    before = copy.deepcopy(ours.state_dict())
    with use(backend):
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.state_dict(), before, rtol=0, atol=0)  # no iteration in evaluation


def test_a_module_of_ours_stays_one():
    before = backends.counts.copy()
    layer = spectral_norm(pyflash.nn.Linear(64, 64))
    with pyflash.use_backend("torch" if backends.MISSING["cpu"] else "cpu"):
        layer(torch.randn(9, 64)).sum().backward()
    assert isinstance(layer, pyflash.nn.Linear) and layer.parametrizations.weight.original.grad is not None
    assert any(name == "linear" for name, _, _ in backends.counts - before)


def test_the_rest_of_utils_is_torchs():
    assert pyflash.nn.utils.clip_grad_norm_ is torch.nn.utils.clip_grad_norm_
    assert pyflash.nn.utils.rnn is torch.nn.utils.rnn and "rnn" in dir(pyflash.nn.utils)
    with pytest.raises(AttributeError, match=r"nor has torch\.nn\.utils"):
        pyflash.nn.utils.no_such_thing  # noqa: B018
